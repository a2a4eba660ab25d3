"""The OpenAPI document: FastAPI's, with what the layers around it add, and without what never happens."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serving.edge import REQUEST_ID
from serving.errors import speaks_v2
from serving.keys import ADMIN_PATHS, is_open
from serving.v2 import V2_ERROR

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_EITHER: list[dict[str, list[str]]] = [{name: []} for name in _SCHEMES]
_ID = {
    "description": "the id that the client gave, or a new one; the log has it too",
    "schema": {"type": "string"},
}
_GIVEN_ID = {
    "name": REQUEST_ID,
    "in": "header",
    "description": "an id of the client's own for this request; another one is replaced",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.:/+=-]{1,128}$"},
}
_FAULT = "a fault of the server, which its log explains under the request's id"
_RETRY_AFTER = {"description": "seconds", "schema": {"type": "string", "pattern": "^[0-9]+$"}}


def document(app: FastAPI, *, locked: bool) -> dict[str, Any]:
    """Return the OpenAPI document of `app`; `locked` says whether its routes need a key."""
    result = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    # FastAPI's answer to a parameter of a wrong type: those here are texts.
    schemas = result["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    result["components"]["securitySchemes"] = _SCHEMES
    for path, operations in result["paths"].items():
        for operation in operations.values():
            operation["responses"]["500"] = {"description": _FAULT, "content": _error_body(path)}
            _complete(operation, needs_key=path in ADMIN_PATHS or (locked and not is_open(path)))
    return result


def _error_body(path: str) -> dict[str, Any]:
    if speaks_v2(path):
        return V2_ERROR
    return {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}


def _complete(operation: dict[str, Any], *, needs_key: bool) -> None:
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    for status, response in responses.items():
        response["headers"] = {REQUEST_ID: _ID} | ({"retry-after": _RETRY_AFTER} if status == "503" else {})
    operation.setdefault("parameters", []).append(_GIVEN_ID)
    if needs_key:
        operation["security"] = _EITHER
