"""OpenTelemetry traces, where an endpoint is configured."""

from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.settings import ServerSettings
from tailstack.errors import UserError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_OWN = "tailstack.scope"
_QUIET = "livez,readyz,healthz,metrics,health/live,health/ready"


def open_provider(settings: ServerSettings) -> "TracerProvider | None":
    """Return what sends spans to the OTLP endpoint of `settings`, until it is shut down; None without an endpoint.

    Raises:
        UserError: the exporter isn't installed.
    """
    if settings.otlp_endpoint is None:
        return None
    # Imported only where it is wanted: the exporter is an extra, and takes long to import.
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UserError("TAILSTACK_OTLP_ENDPOINT needs the exporter: pip install 'tailstack[tracing]'") from error
    # Shut down by the app: uvicorn ends by the signal it got, and nothing that is registered with atexit runs.
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "tailstack"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(settings.otlp_endpoint)))
    return provider


def traced(app: ASGIApp, provider: "TracerProvider | None") -> ASGIApp:
    """Give `provider` a span of each request; without one, return `app` as it is."""
    if provider is None:
        return app
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    middleware = OpenTelemetryMiddleware(_with_own_headers(app), tracer_provider=provider, excluded_urls=_QUIET)

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = [(name, _ascii(value)) for name, value in scope["headers"]]
            scope = {**scope, "headers": headers, "query_string": _ascii(scope["query_string"]), _OWN: scope}
        await middleware(scope, receive, send)

    return call


def _with_own_headers(app: ASGIApp) -> ASGIApp:
    """Return an app that sees a request as it came."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        own = scope.get(_OWN)
        await app(scope if own is None else own, receive, send)

    return call


def _ascii(value: bytes) -> bytes:
    """Return a value in ASCII: the middleware fails on others, such as a byte that isn't UTF-8 before `\\x`."""
    return value.decode("ascii", "replace").encode("ascii", "replace")
