"""Who is ahead of whom: places that a second run gives again, because the noise of one doesn't decide them."""

import itertools
from collections import defaultdict
from collections.abc import Sequence

from scipy.stats import binomtest

from benchmarks.comparison_rows import OPEN_LOOP, Row

_DOUBT = 0.05


def is_ahead(one: Row, other: Row) -> bool:
    """Return whether one system is faster than another one in so many rounds that chance doesn't explain it.

    By a sign test: it asks nothing of how the rounds' rates are spread, and a round in which the machine is slow for
    both is one round like the others. A system of which requests failed is neither ahead nor behind.
    """
    if one["failed"] or other["failed"]:
        return False
    rounds = [(a, b) for a, b in zip(one["rounds"], other["rounds"], strict=True) if a != b]
    if not rounds:
        return False
    wins = sum(a > b for a, b in rounds)
    return bool(binomtest(wins, len(rounds), alternative="greater").pvalue <= _DOUBT)


def place(row: Row, rows: Sequence[Row]) -> int | None:
    """Return a row's place among those of `rows` at the same load: 1, and 1 more for each that is ahead.

    None where requests failed, which took less work, or where all answer what they are sent: in the open loop.
    """
    if row["failed"] or row["where"] == OPEN_LOOP:
        return None
    return 1 + sum(is_ahead(other, row) for other in rows if _load(other) == _load(row))


def beside_earlier(rows: Sequence[Row], earlier: Sequence[Row]) -> str:
    """Return a line that says whether the systems that are ahead of others were so in an earlier run too."""
    before = _order(earlier)
    both = {pair: ahead for pair, ahead in _order(rows).items() if pair in before}
    turned = [
        f"{before[pair]} was ahead of {ahead} ({pair[0]}, {pair[1]:g})"
        for pair, ahead in both.items()
        if before[pair] != ahead
    ]
    text = f"Beside an earlier run: {len(both)} pairs of systems are ordered in both, {len(turned)} of them otherwise"
    return f"{text}: {'; '.join(turned)}." if turned else f"{text}."


def _order(rows: Sequence[Row]) -> dict[tuple[str, float, str, str], str]:
    """Return which of two systems is ahead, by where, load and names of each pair that is ordered."""
    groups: dict[tuple[str, float], list[Row]] = defaultdict(list)
    for row in rows:
        if row["where"] != OPEN_LOOP:
            groups[_load(row)].append(row)
    found = {}
    for load, group in groups.items():
        for one, other in itertools.combinations(sorted(group, key=lambda row: row["system"]), 2):
            for a, b in ((one, other), (other, one)):
                if is_ahead(a, b):
                    found[*load, one["system"], other["system"]] = a["system"]
    return found


def _load(row: Row) -> tuple[str, float]:
    return row["where"], row["batch_or_concurrency"]
