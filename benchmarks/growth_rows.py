"""The table of `growth.py`: one row for each value of what grows."""

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
    p50_ms: float | None
    """Of a call or a request; None where none was answered."""
    p99_ms: float | None
    server_cpu_ms_per_request: float | None
    """Processor time of the server and of all that it started; None in process."""
    refused: float | None
    """Share of the requests that were answered with an error, or not at all; None in process."""
    load_cores: float | None
    """Cores that the load itself took; None in process."""
    relative_to_first: float | None
    """Images per second beside the axis's first value, all else equal: the median of the rounds' ratios."""
