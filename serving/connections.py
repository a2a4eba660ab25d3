"""Connections that don't get on: uvicorn waits for ever for a client to send or to read, and keeps all headers.

BentoML starts uvicorn with no say in its HTTP protocol but the entry `auto` of uvicorn's own table.
"""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.errors import RETRY_AFTER_S
from serving.settings import ServerSettings

MAX_HEADER_BYTES = 65_536
"""Of all headers of a request, of its trailers, and of what a chunk says beyond its size."""
MAX_PIPELINED = 32
"""Requests that wait for the answer to an earlier one on their connection."""
KEEP_ALIVE_S = 75
"""uvicorn's 5 s end connections that a load balancer, with a minute usually, is about to use again."""


def guard_connections(settings: ServerSettings) -> None:
    """Let uvicorn use `GuardedProtocol`, with the limits of `settings`."""
    GuardedProtocol.receive_timeout = settings.receive_timeout
    GuardedProtocol.max_connections = settings.max_connections
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{GuardedProtocol.__name__}"


class _Timer:
    """Calls `then` when the client has had its time, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, then: Callable[[], None]) -> None:
        self._start = partial(loop.call_later, seconds, then)
        self._handle: asyncio.TimerHandle | None = None

    @property
    def runs(self) -> bool:
        return self._handle is not None

    def start(self) -> None:
        """Begin, or begin anew."""
        self.stop()
        self._handle = self._start()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a time limit wherever the client is to act, and errors as JSON.

    Sending a request and reading an answer have a timer each: a client that does one of them may never do the other.
    """

    receive_timeout: float
    max_connections: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.timeout_keep_alive = KEEP_ALIVE_S
        self._receiving = _Timer(self.loop, self.receive_timeout, self._refuse_slow_request)
        self._sending = _Timer(self.loop, self.receive_timeout, self._check_sending)
        self._unsent = 0
        self._unparsed = 0
        self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse a connection above the limit; else wait for its first request."""
        # asyncio declares any transport; a connection's is always this one.
        super().connection_made(cast(asyncio.Transport, transport))
        self._receiving.start()
        if len(self.connections) > self.max_connections:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", "too many connections: come back later")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._receiving.stop()
        self._sending.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes without an event of the parser, which keeps it whole."""
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > MAX_HEADER_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", "the headers are too large")
        self._keep_alive()

    def on_message_begin(self) -> None:
        """Wait for the headers of a request."""
        super().on_message_begin()
        self._unparsed = 0
        self._receiving.start()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, but no trailer: nobody reads them."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Leave the body to the app, which has its own limit of time."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many pipelined requests")
        self._receiving.stop()
        self._unparsed = 0
        super().on_headers_complete()
        # Only now: an address that can't be parsed leaves no request behind that this could be the body of.
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is whole."""
        self._unparsed = 0
        self._in_body = False
        self._receiving.stop()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the client to read, and for the rest of a body whose answer didn't need it."""
        super().on_response_complete()
        self._wait_for_reading()
        if self._in_body:
            self._receiving.start()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._wait_for_reading()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, "malformed_http", msg)

    def _keep_alive(self) -> None:
        """Wait for the next request where what came is none, though uvicorn has stopped its timer for it."""
        timed = self._receiving.runs or self.timeout_keep_alive_task is not None
        if self._all_answered() and not timed:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _refuse_slow_request(self) -> None:
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, "request_too_slow", "the request did not arrive in time")

    def _wait_for_reading(self) -> None:
        """Give the client its time to read, if there is anything for it."""
        self._sending.stop()
        self._unsent = self.transport.get_write_buffer_size()
        if self._unsent:
            self._sending.start()

    def _check_sending(self) -> None:
        if self.transport.get_write_buffer_size() < self._unsent:
            self._wait_for_reading()
        else:
            # Closing waits until all is sent: for ever, where the client doesn't read.
            self.transport.abort()

    def _refuse(self, status: HTTPStatus, code: str, message: str) -> None:
        """Close, with an answer unless the app has begun one."""
        if self.transport.is_closing():
            return
        if self._may_answer():
            body = json.dumps({"error": {"code": code, "message": message}}).encode()
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                head += f"retry-after: {RETRY_AFTER_S}\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode("ascii") + body)
        self._wait_for_reading()
        self.transport.close()

    def _may_answer(self) -> bool:
        if self._in_body:
            return not self.cycle.response_started and not self.pipeline
        return self._all_answered()

    def _all_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete
