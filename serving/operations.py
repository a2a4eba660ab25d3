"""The routes about the server: its model, its health, its figures, its page, and BentoML's clients' schema."""

import asyncio
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from serving import metrics, openapi
from serving.errors import ErrorResponse, RequestError
from serving.protocol import ModelDescription, ModelName, describe, name_of
from serving.routes import ERRORS
from serving.server import Server
from tailstack.errors import UserError

_PAGE = Path(__file__).parent / "web" / "index.html"
_CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_LOCKED: dict[int | str, dict[str, Any]] = {401: ERRORS[401]}


class Reloaded(BaseModel):
    """The answer of `POST /model/reload`."""

    changed: bool
    """Whether another model answers now."""
    model: ModelName


def add(app: FastAPI, server: Server) -> None:
    """Add the routes to `app`."""

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(_PAGE, headers={"content-security-policy": _CONTENT_SECURITY})

    @app.get("/model", summary="What is served, and on what", responses=_LOCKED)
    async def model() -> ModelDescription:
        return describe(server.live.current)

    @app.post(
        "/model/reload",
        summary="Load the model file again; needs an admin key",
        responses=_LOCKED
        | {
            403: {"model": ErrorResponse, "description": "no admin key is set"},
            409: {"model": ErrorResponse, "description": "the new file was refused; the old model goes on"},
        },
    )
    async def reload() -> Reloaded:
        try:
            changed = await server.live.reload()
        except UserError as error:
            raise RequestError(HTTPStatus.CONFLICT, "model_refused", _without_path(error, server)) from error
        return Reloaded(changed=changed, model=name_of(server.live.current))

    @app.get("/livez", summary="Whether the process runs", response_class=PlainTextResponse)
    @app.get("/healthz", include_in_schema=False, response_class=PlainTextResponse)
    async def livez() -> str:
        return "\n"

    @app.get(
        "/readyz",
        summary="Whether requests are to be sent here",
        response_class=PlainTextResponse,
        responses={503: ERRORS[503]},
    )
    async def readyz() -> str:
        server.check_ready()
        return "\n"

    @app.get("/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse, responses=_LOCKED)
    async def figures() -> Response:
        # Not among the decoders' threads: figures are wanted most where images take all of these.
        return Response(await asyncio.to_thread(metrics.render), media_type=metrics.CONTENT_TYPE)

    @app.get("/docs.json", include_in_schema=False)
    async def documentation() -> Response:
        return JSONResponse(openapi.document(app, locked=server.guard.locked))

    @app.get("/schema.json", include_in_schema=False)
    async def schema() -> Response:
        return JSONResponse(_BENTOML_SCHEMA)


def _without_path(error: UserError, server: Server) -> str:
    """Say why a model was refused, but not where it lies."""
    path = server.settings.model_file
    return str(error).replace(str(path), path.name)


def _bentoml_route(name: str, route: str, field: str, schema: dict[str, Any]) -> dict[str, Any]:
    options = {"top_k": "integer", "min_probability": "number", "learners": "boolean", "coverage": "number"}
    properties = {field: schema, **{option: {"type": kind} for option, kind in options.items()}}
    return {
        "name": name,
        "route": route,
        "batchable": False,
        "input": {"type": "object", "properties": properties, "required": [field]},
        "output": {"type": "object"},
    }


_FILE = {"type": "file", "format": "image"}
_BENTOML_SCHEMA = {
    "name": "tailstack",
    "type": "service",
    "routes": [
        _bentoml_route("classify", "/classify", "image", _FILE),
        _bentoml_route("classify_batch", "/classify/batch", "images", {"type": "array", "items": _FILE}),
    ],
}
"""What `bentoml.SyncHTTPClient` asks for to know its methods."""
