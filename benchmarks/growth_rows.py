"""The table of `growth.py`: one row for each value of what grows."""

import statistics
from collections.abc import Sequence
from typing import TypedDict

LEARNERS, BATCH, CLASSES, PIXELS, CONCURRENCY = "learners", "batch", "classes", "pixels", "concurrency"


class Row(TypedDict):
    """One value on one axis, measured one way: medians over the rounds, percentiles of the answers of all rounds."""

    where: str
    """`in process`, or `http` (closed loop)."""
    axis: str
    """What grows: `learners`, `batch`, `classes`, `pixels` (height and width) or `concurrency`."""
    value: int
    batch: int
    """Images of one call, or of one request."""
    workers: int
    """Processes with a model."""
    images_per_second: float
    p50_ms: float
    """Of a call or a request."""
    p99_ms: float
    server_cpu_ms_per_request: float | None
    """Processor time of the server and of all that it started; None in process."""
    refused: float | None
    """Share of the requests that were answered with an error, or not at all; None in process."""
    relative_to_first: float
    """Images per second beside the axis's first value, all else equal: the median of the rounds' ratios."""


def relative(own: Sequence[float], first: Sequence[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(own, first, strict=True))
