"""The table of `compare.py`: one row for each system and batch size, concurrency or rate."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

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
    p50_ms: float | None
    """Of a batch or a request; None where no answer's time is known."""
    p99_ms: float | None
    server_cpu_ms_per_request: float | None
    """Processor time of the server and of all that it started; None in process."""
    relative_to_ours: float | None
    """Images per second beside ours, the median of the rounds' ratios."""
    rounds: list[float]
    """Images per second of each round."""
    failed: float
    """Share of the requests that were answered with an error, or not at all: 0 to 1."""
    load_cores: float | None
    """Cores that the load itself took; None in process."""


_SINCE: dict[str, Any] = {"failed": 0.0, "load_cores": None}
"""What earlier versions didn't write."""
_KINDS: dict[str, Any] = {"where": str, "system": str, "batch_or_concurrency": (int, float), "rounds": list}
"""What places are made of."""


def relative(own: Sequence[float], base: Sequence[float]) -> float | None:
    """Return the median of the rounds' ratios, without rounds in which the base has nothing; None if it never has."""
    ratios = [a / b for a, b in zip(own, base, strict=True) if b]
    return statistics.median(ratios) if ratios else None


def read_rows(path: Path) -> list[Row]:
    """Read the compare.json of an earlier run.

    Raises:
        UserError: the file is missing, or isn't one.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not all(map(_is_row, rows)) or not _have_equal_rounds(rows):
        raise UserError(f"{path} isn't a compare.json with the rounds of each row")
    return [_SINCE | row for row in rows]


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and Row.__annotations__.keys() - _SINCE.keys() <= row.keys()
        and all(isinstance(row[key], kind) for key, kind in _KINDS.items())
        and all(isinstance(rate, int | float) for rate in row["rounds"])
    )


def _have_equal_rounds(rows: Sequence[Row]) -> bool:
    """Return whether the systems of each load had the same number of rounds."""
    counts: dict[tuple[str, float], set[int]] = defaultdict(set)
    for row in rows:
        counts[row["where"], row["batch_or_concurrency"]].add(len(row["rounds"]))
    return all(len(found) == 1 for found in counts.values())
