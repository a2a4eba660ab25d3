"""What every request passes on its way in and out: its id, its log line, its figures, its errors."""

import asyncio
import logging
import os
import re
import time
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import RequestError
from serving.metrics import METRICS

logger = logging.getLogger("tailstack.requests")
REQUEST_ID = "x-request-id"
INTERNAL_ERROR = RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "the server made a mistake")
UNMATCHED = "unmatched"
_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})
_CLIENT_LEFT = 499
_QUIET = frozenset({"/livez", "/readyz", "/healthz", "/metrics", "/v2/health/live", "/v2/health/ready"})
_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Edge:
    """Outermost layer of the app: nothing that goes wrong behind it reaches a client but as a documented error."""

    def __init__(self, app: ASGIApp, *, log_all: bool) -> None:
        self._app = app
        self._log_all = log_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await _Exchange(scope, send, self._log_all).serve(self._app, receive)
        else:
            await self._app(scope, receive, send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, send: Send, log_all: bool) -> None:
        self._log_all = log_all
        self._method = scope["method"]
        # Whole answers to all: those of Starlette to a range that it doesn't like are no JSON.
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        # HTTP wants HEAD wherever there is GET. uvicorn, which has the scope itself, leaves the body out.
        self._scope = {**scope, "headers": headers, "method": "GET" if self._method == "HEAD" else self._method}
        self._send = send
        self._start = time.perf_counter()
        self._headers = Headers(raw=headers)
        given = self._headers.get(REQUEST_ID, "")
        self._id = given if _ID.fullmatch(given) else os.urandom(16).hex()
        self._status = 0
        self._scope.setdefault("state", {})["request_id"] = self._id

    async def serve(self, app: ASGIApp, receive: Receive) -> None:
        """Let the app answer, or answer with an error."""
        scope = self._scope
        try:
            await app(scope, receive, self._answer)
        except ClientDisconnect:
            self._status = _CLIENT_LEFT
        except Exception:
            logger.exception("the request failed", extra={"request_id": self._id})
            if not self._status:
                await INTERNAL_ERROR.response(scope["path"])(scope, receive, self._answer)
        finally:
            # In the loop's next round: uvloop sends the answer at the end of this one, and a client waits for it.
            asyncio.get_running_loop().call_soon(self._record)

    async def _answer(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            # No route sets any of these itself.
            own = (REQUEST_ID.encode(), self._id.encode())
            message = {**message, "headers": [*message["headers"], own, *_SECURITY]}
        await self._send(message)

    def _record(self) -> None:
        scope = self._scope
        seconds = time.perf_counter() - self._start
        route = getattr(scope.get("route"), "path", UNMATCHED)
        method = self._method if self._method in _METHODS else "other"
        METRICS.requests.labels(route, method, str(self._status)).inc()
        METRICS.request_seconds.labels(route).observe(seconds)
        if self._status < 400 and (route in _QUIET or not self._log_all):
            return
        logger.info(
            "%s %s",
            self._method,
            scope["path"][:200],
            extra={
                "request_id": self._id,
                "route": route,
                "status": self._status,
                "milliseconds": round(seconds * 1000, 2),
                "bytes": self._headers.get("content-length"),
                "client": (scope.get("client") or ("",))[0],
            },
        )


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer an error that the app raised itself: our own, or Starlette's for an unknown path or method."""
    # Not `request.url`, which fails on some Host headers.
    path = request.scope["path"]
    if not isinstance(error, HTTPException):
        return (error if isinstance(error, RequestError) else INTERNAL_ERROR).response(path)
    status = HTTPStatus(error.status_code)
    message = f"there is no {path[:100]}" if status == HTTPStatus.NOT_FOUND else str(error.detail)
    response = RequestError(status, status.name.lower(), message).response(path)
    response.headers.update(error.headers or {})
    return response
