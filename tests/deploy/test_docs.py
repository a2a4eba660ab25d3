"""docs/serving.md is true: every setting with its default, every route, and links that lead somewhere."""

import re

from fastapi import FastAPI
from fastapi.routing import APIRoute

from serving import operations, routes
from serving.server import Server
from serving.settings import PREFIX, ServerSettings
from tests.serving.conftest import ROOT

PAGE = ROOT / "docs" / "serving.md"
ROW = re.compile(rf"^\| (`{PREFIX}.*?) \|(.*?)\|", re.MULTILINE)


def test_every_setting_with_its_default() -> None:
    documented = {
        name.strip("`").removeprefix(PREFIX).lower(): default.strip(" `")
        for names, default in ROW.findall(PAGE.read_text())
        for name in names.split(", ")
    }
    defaults = {name: field.default for name, field in ServerSettings.model_fields.items()}
    assert set(documented) == set(defaults)
    for name, default in documented.items():
        value = defaults[name]
        if not default:
            assert value in ((), None)
        elif name == "model":
            assert value == ROOT / default
        else:
            assert getattr(ServerSettings.model_validate({name: default}), name) == value


def test_every_route() -> None:
    app = FastAPI(openapi_url=None)
    server = Server(ServerSettings())
    routes.add(app, server)
    operations.add(app, server)
    text = PAGE.read_text()
    paths = {route.path for route in app.routes if isinstance(route, APIRoute)} - {"/schema.json"}
    assert "/classify" in paths
    assert [path for path in sorted(paths) if f"{path}`" not in text] == []


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text())
    assert links
    assert [link for link in links if not (PAGE.parent / link).is_file()] == []
