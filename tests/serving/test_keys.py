"""Who may use the server: API keys, the admin's key, pages of other origins."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.http as triton

from tests.serving.conftest import ADMIN_KEY, Running, encoded, new_client, running, web

ORIGIN = "https://page.example"
LOCKED = ("/classify", "/classify/batch", "/v2/models/ensemble/infer", "/v2", "/model", "/metrics", "/docs.json")


@pytest.fixture(scope="module")
def locked(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("locked")
    (folder / "keys").write_text(
        "first-of-the-file\n# for the shop\n  # and more\nfrom-the-file  # of alice\nwith#inside\n\n", "utf-8-sig"
    )
    variables = {
        "TAILSTACK_API_KEYS": "first, schlüssel",
        "TAILSTACK_API_KEYS_FILE": str(folder / "keys"),
        "TAILSTACK_ADMIN_KEYS": ADMIN_KEY,
        "TAILSTACK_CORS_ORIGINS": ORIGIN,
    }
    with running(tiny_model, folder, **variables) as server:
        yield server


@pytest.mark.parametrize("key", ["first", "schlüssel", "first-of-the-file", "from-the-file", "with#inside", ADMIN_KEY])
def test_every_key_opens_by_either_header(locked: Running, key: str) -> None:
    for headers in ({"authorization": b"Bearer " + key.encode()}, {"x-api-key": key.encode()}):
        assert web.post(f"{locked.address}/classify", content=encoded(), headers=headers).status_code == 200
        assert web.get(f"{locked.address}/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": "wrong"},
        {"x-api-key": "first, schlüssel".encode()},
        {"x-api-key": "# for the shop"},
        {"x-api-key": "# and more"},
        {"x-api-key": "from-the-file  # of alice"},
        {"authorization": "Basic first"},
        {"authorization": "Bearer"},
        {"authorization": "first"},
        {"x-api-key": b"\xff\xfe"},
    ],
)
def test_no_other_does(locked: Running, headers: dict[str, str | bytes]) -> None:
    for path in (
        "/classify",
        "/classify/batch",
        "/v2/models/ensemble/infer",
        "/v2",
        "/model",
        "/metrics",
        "/docs.json",
    ):
        method = "POST" if "classify" in path or "infer" in path else "GET"
        response = web.request(method, f"{locked.address}{path}", headers=headers, content=encoded())
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        error = response.json()["error"]
        assert "key" in (error if path.startswith("/v2") else error["message"])


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"])
def test_health_and_the_page_need_no_key(locked: Running, path: str) -> None:
    assert web.get(f"{locked.address}{path}").status_code == 200


@pytest.mark.parametrize(
    "path", ["/static/../model", "/static/%2e%2e/model", "//model", "/model/", "/./model", "/model%0A"]
)
def test_no_way_around_the_keys(locked: Running, path: str) -> None:
    with new_client() as client:
        request = client.build_request("GET", locked.address)
        request.url = request.url.copy_with(raw_path=path.encode())
        assert client.send(request).status_code in {401, 404}


def test_tritons_client_sends_a_key(locked: Running) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{locked.port}") as client:
        assert client.is_server_ready()
        assert client.get_server_metadata(headers={"x-api-key": "first"})["name"] == "tailstack"


def test_reloading_is_the_admins(locked: Running, server: str) -> None:
    def reload(address: str, key: str) -> int:
        return web.post(f"{address}/model/reload", headers={"x-api-key": key}).status_code

    assert reload(locked.address, ADMIN_KEY) == 200
    assert reload(locked.address, "first") == 401
    assert reload(server, "") == reload(server, "first") == 403
    # A route's pattern fits with a line's end behind it too.
    for address, key in ((locked.address, "first"), (server, "")):
        for path in ("/model/reload%0A", "/model/reload%0D%0A"):
            assert web.post(f"{address}{path}", headers={"x-api-key": key}).status_code == 404


def test_a_page_of_the_named_origin_may_ask(locked: Running) -> None:
    asks = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, inference-header-content-length",
    }
    preflight = web.options(f"{locked.address}/classify", headers=asks)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    for key, status in (("first", 200), ("wrong", 401)):
        headers = {"origin": ORIGIN, "x-api-key": key}
        response = web.post(f"{locked.address}/classify", content=encoded(), headers=headers)
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "inference-header-content-length" in response.headers["access-control-expose-headers"]


def test_no_other_page_may(locked: Running, server: str) -> None:
    for address, origin in ((locked.address, "https://other.example"), (server, ORIGIN)):
        headers = {"origin": origin, "x-api-key": "first"}
        response = web.post(f"{address}/classify", content=encoded(), headers=headers)
        assert "access-control-allow-origin" not in response.headers


def test_the_documentation_says_where_a_key_is_needed(locked: Running, server: str) -> None:
    paths = web.get(f"{locked.address}/docs.json", headers={"x-api-key": "first"}).json()["paths"]
    assert all("security" in paths[path][method] for path, method in (("/classify", "post"), ("/model", "get")))
    assert "security" not in paths["/livez"]["get"]
    open_paths = web.get(f"{server}/docs.json").json()["paths"]
    assert [path for path in open_paths if "security" in str(open_paths[path])] == ["/model/reload"]
