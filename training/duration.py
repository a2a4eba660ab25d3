"""Lengths of time as people write and read them."""

import re

from tailstack.errors import UserError

_UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds_of(budget: str) -> float:
    """Read a duration such as `300s`, `20m` or `1.5h`.

    Raises:
        UserError: it isn't one.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", budget.strip())
    if match is None or float(match[1]) == 0:
        raise UserError(f"--budget {budget} is no length of time: write it as 300s, 20m or 2h")
    return float(match[1]) * _UNITS[match[2]]


def in_words(seconds: float) -> str:
    """Return a duration as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
