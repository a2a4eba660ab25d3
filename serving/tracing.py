"""OpenTelemetry traces, where an endpoint is configured."""

from starlette.types import ASGIApp

from serving.settings import ServerSettings
from tailstack.errors import UserError


def traced(app: ASGIApp, settings: ServerSettings) -> ASGIApp:
    """Send a span of each request to the OTLP endpoint of `settings`; without one, return `app` as it is.

    Raises:
        UserError: the exporter isn't installed.
    """
    if settings.otlp_endpoint is None:
        return app
    # Imported only where it is wanted: the exporter is an extra, and takes long to import.
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # noqa: PLC0415
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise UserError("TAILSTACK_OTLP_ENDPOINT needs the exporter: pip install 'tailstack[tracing]'") from error
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "tailstack"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(settings.otlp_endpoint)))
    return OpenTelemetryMiddleware(app, tracer_provider=provider, excluded_urls="livez,readyz,healthz,metrics")
