"""What `/metrics` shows, in Prometheus' format. Labels come from fixed sets, so that no client can add series."""

import os
from pathlib import Path

from serving.settings import METRICS_DIRECTORY

_MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_DIRECTORY = os.environ.get(METRICS_DIRECTORY)

# prometheus_client reads the variable when it is imported.
if _DIRECTORY:
    os.environ[_MULTIPROCESS_VARIABLE] = _DIRECTORY
else:
    os.environ.pop(_MULTIPROCESS_VARIABLE, None)

from prometheus_client import (  # noqa: E402 (reads the variable set above when it is imported)
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
_SHARES = tuple(n / 10 for n in range(1, 11))


class Metrics:
    """The figures of one worker."""

    def __init__(self) -> None:
        self.requests = Counter("tailstack_requests", "Answered requests", ["route", "method", "status"])
        self.request_seconds = Histogram(
            "tailstack_request_seconds", "From a request's headers to its answer", ["route"], buckets=_SECONDS
        )
        self.decode_seconds = Histogram("tailstack_decode_seconds", "Decoding of one image", buckets=_SECONDS)
        self.queue_seconds = Histogram(
            "tailstack_queue_seconds", "Wait of one decoded image for inference", buckets=_SECONDS
        )
        self.inference_seconds = Histogram("tailstack_inference_seconds", "Inference of one batch", buckets=_SECONDS)
        self.batch_size = Histogram("tailstack_batch_size", "Images of one inference", buckets=_COUNTS)
        self.queue_images = Gauge(
            "tailstack_queue_images", "Images admitted and not answered", multiprocess_mode="livesum"
        )
        self.queue_capacity = Gauge(
            "tailstack_queue_capacity_images", "Images admitted at most", multiprocess_mode="livesum"
        )
        self.rejected = Counter("tailstack_rejected", "Requests refused for want of room or time", ["reason"])
        self.model = Gauge(
            "tailstack_model_info",
            "1 for the model that answers",
            ["name", "version", "provider"],
            multiprocess_mode="livemax",
        )
        self.reloads = Counter("tailstack_reloads", "New model files", ["outcome"])
        self.predictions = Counter("tailstack_predictions", "Images by most probable class", ["label"])
        self.confidence = Histogram("tailstack_confidence", "Probability of the most probable class", buckets=_SHARES)
        self.disagreements = Counter(
            "tailstack_disagreements", "Images for which a learner prefers another class than the ensemble"
        )


METRICS = Metrics()


def render() -> bytes:
    """Return the figures of all workers of this server in Prometheus' text format."""
    if not _DIRECTORY:
        return bytes(generate_latest(REGISTRY))
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return bytes(generate_latest(registry))


def forget_dead_workers() -> None:
    """Drop the gauges of workers that are gone; their counters stay in the sums."""
    if not _DIRECTORY:
        return
    for path in Path(_DIRECTORY).glob("gauge_live*_*.db"):
        pid = path.stem.rpartition("_")[2]
        if not Path("/proc", pid).exists():
            path.unlink(missing_ok=True)
