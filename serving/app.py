"""The app: its routes, its layers, and what it does when it starts and stops."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

import tailstack
from serving import operations, routes, tracing, v2
from serving.classifier import Classifier
from serving.edge import REQUEST_ID, Edge, answer_error
from serving.errors import RequestError
from serving.keys import Gate
from serving.live import LiveModel
from serving.metrics import forget_dead_workers
from serving.server import Server
from serving.settings import ServerSettings

WEB = Path(__file__).parent / "web"


def build_app(settings: ServerSettings, when_started: Callable[[Server], None] = lambda server: None) -> ASGIApp:
    """Make the app.

    Args:
        settings: of the server.
        when_started: called on the event loop once the model is warm, before the first request.

    Raises:
        UserError: a keys file can't be read, or the exporter of traces isn't installed.
    """
    server = Server(settings)
    traces = tracing.open_provider(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        forget_dead_workers()
        server.live = LiveModel(settings)
        server.classifier = Classifier(settings, server.live)
        watching = asyncio.create_task(server.live.watch()) if settings.reload_interval else None
        when_started(server)
        yield
        if watching is not None:
            watching.cancel()
        server.classifier.close()
        server.live.close()
        if traces is not None:
            await asyncio.to_thread(traces.shutdown)

    app = FastAPI(
        title="Tailstack",
        version=tailstack.__version__,
        description="Classifies images with the ensemble in one ONNX file.",
        openapi_url=None,  # `operations` has it, with what FastAPI doesn't know
        redirect_slashes=False,
        lifespan=lifespan,
    )
    for kind in (RequestError, HTTPException, Exception):
        app.add_exception_handler(kind, answer_error)
    routes.add(app, server)
    v2.add(app, server)
    operations.add(app, server)
    app.mount("/static", StaticFiles(directory=WEB), name="static")
    inner = _with_cors(Gate(app, server.guard), settings)
    return tracing.traced(Edge(inner, log_all=settings.request_log == "all"), traces)


def _with_cors(app: ASGIApp, settings: ServerSettings) -> ASGIApp:
    if not settings.cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-api-key", REQUEST_ID, v2.HEADER_LENGTH],
        expose_headers=[REQUEST_ID, "retry-after", v2.HEADER_LENGTH],
    )
