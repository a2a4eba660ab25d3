"""The table of `compare.py`: one row for each system and batch size, concurrency or rate."""

from pathlib import Path
from typing import TypedDict

from tailstack.errors import UserError
from tailstack.files import read_json

IN_PROCESS, HTTP, OPEN_LOOP = "in process", "http", "http, open loop"


class Row(TypedDict):
    """One system, measured one way: medians over the rounds, percentiles of the answers of all rounds."""

    where: str
    """`in process`, `http` (closed loop) or `http, open loop`."""
    system: str
    version: str
    batch_or_concurrency: float
    """Images a batch, requests under way at a time, or, in the open loop, requests a second."""
    images_per_second: float
    p50_ms: float
    """Of a batch or a request."""
    p99_ms: float
    server_cpu_ms_per_request: float | None
    """Processor time of the server and of all that it started; None in process."""
    relative_to_ours: float
    """Images per second beside ours, the median of the rounds' ratios."""
    rounds: list[float]
    """Images per second of each round."""


def read_rows(path: Path) -> list[Row]:
    """Read the compare.json of an earlier run.

    Raises:
        UserError: the file is missing, or isn't one.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and Row.__annotations__.keys() <= row.keys() for row in rows
    ):
        raise UserError(f"{path} isn't a compare.json with the rounds of each row")
    return rows
