"""The tables of a report: techniques by ratio, every figure, and the comparison with the course project."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tailstack.figures import Row, write_csv
from tailstack.markdown import table
from training.report_data import BASELINE, Group, Series, Spread, ordered

GROUPS = ("many", "medium", "few")
COLUMNS = (
    *("ratio", "technique", "seeds", "top1_mean", "top1_std", "average_learner_mean"),
    *GROUPS,
    *("ece", "improvement"),
)
REFERENCE = Path(__file__).with_name("reference.csv")
REFERENCE_CLASSES = 50
REFERENCE_AMONG = {"aquarium_fish", "lawn_mower", "maple_tree"}
"""Classes that tell the course project's data set from others with as many."""

Reference = dict[tuple[str, float], float]
"""Top-1 by technique and ratio."""


def number(value: float | None, digits: int = 4) -> str:
    """Return a figure as text, and `-` where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """Return a difference as text with its sign, and `-` where there is none."""
    return "-" if value is None else f"{value:+.4f}"


def with_std(value: Spread) -> str:
    """Return a mean, with the standard deviation where there are several seeds."""
    return number(value.mean) + ("" if value.std is None else f" ± {value.std:.4f}")


def bold(text: str, wanted: bool = True) -> str:
    """Return the text in bold."""
    return f"**{text}**" if wanted else text


def write_table(path: Path, groups: Sequence[Group]) -> None:
    """Write `table.csv`: a row a data set and technique."""
    rows = [_csv_row(group, series) for group in groups for series in group.series.values()]
    write_csv(path, COLUMNS, rows)


def _csv_row(group: Group, series: Series) -> Row:
    top1 = series.spread("top1")
    figures = [top1.mean, top1.std, series.average_learner.mean]
    figures += [series.spread(name).mean for name in (*GROUPS, "ece")]
    return [group.label, series.technique, len(series.cells), *figures, group.improvement(series.technique)]


def ratio_table(groups: Sequence[Group]) -> str:
    """Return top-1 by ratio (rows) and technique (columns); the best of a row and the best average are bold."""
    techniques = ordered(name for group in groups for name in group.series)
    rows = [_ratio_row(group, techniques) for group in groups]
    compared = [name for name in techniques if name != BASELINE and average_improvement(groups, name) is not None]
    if compared:
        rows.append(["average improvement", *_average_row(groups, techniques, compared)])
    return table(["ratio", *techniques], rows)


def average_improvement(groups: Sequence[Group], technique: str) -> float | None:
    """Return the mean over data sets of what the technique adds to the baseline, where both were measured."""
    gains = [gain for group in groups if (gain := group.improvement(technique)) is not None]
    return float(np.mean(gains)) if gains else None


def _ratio_row(group: Group, techniques: Sequence[str]) -> list[str]:
    spreads = {name: group.series[name].spread("top1") for name in techniques if name in group.series}
    best = max(spreads, key=lambda name: spreads[name].mean or 0)
    cells = [
        bold(with_std(spreads[name]), name == best and len(spreads) > 1) if name in spreads else ""
        for name in techniques
    ]
    return [group.label, *cells]


def _average_row(groups: Sequence[Group], techniques: Sequence[str], compared: Sequence[str]) -> list[str]:
    gains = {name: average_improvement(groups, name) or 0.0 for name in compared}
    best = max(gains, key=lambda name: gains[name])
    counts = {name: sum(group.improvement(name) is not None for group in groups) for name in compared}
    most = max(counts.values())
    cells = []
    for name in techniques:
        text = bold(signed(gains[name]), name == best) if name in gains else ""
        cells.append(text + (f" (of {counts[name]})" if name in gains and counts[name] < most else ""))
    return cells


def full_table(groups: Sequence[Group]) -> str:
    """Return every figure of the test split, a row a data set and technique."""
    header = ["ratio", "technique", "seeds", "top-1", "average learner", *GROUPS, "ECE", "over baseline", "parameters"]
    return table(header, (_full_row(g, series) for g in groups for series in g.series.values()), "ll")


def _full_row(group: Group, series: Series) -> list[str]:
    figures = [with_std(series.spread("top1")), number(series.average_learner.mean)]
    figures += [number(series.spread(name).mean) for name in (*GROUPS, "ece")]
    gain = None if series.technique == BASELINE else group.improvement(series.technique)
    return [
        group.label,
        series.technique,
        str(len(series.cells)),
        *figures,
        signed(gain),
        f"{series.parameters / 1e6:.1f} M",
    ]


def test_error(groups: Sequence[Group]) -> float | None:
    """Return the largest standard error of a top-1 that comes from the number of test images alone."""
    errors = []
    for group in groups:
        images = sum(item["test_images"] for item in group.cell.run.per_class)
        rates = [series.spread("top1").mean for series in group.series.values()]
        errors += [math.sqrt(rate * (1 - rate) / images) for rate in rates if rate is not None and images]
    return max(errors, default=None)


def load_reference(groups: Sequence[Group]) -> Reference:
    """Return the course project's figures for the ratios that were measured; none if the classes are others."""
    classes = groups[0].cell.run.classes
    if len(classes) != REFERENCE_CLASSES or not set(classes) >= REFERENCE_AMONG:
        return {}
    ratios = {group.ratio for group in groups}
    with REFERENCE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (row["technique"], float(row["ratio"])): float(row["top1"]) for row in rows if float(row["ratio"]) in ratios
    }


def reference_table(groups: Sequence[Group], reference: Reference) -> str:
    """Return our top-1 and its distance from the course project's, by ratio and technique."""
    names = {name for name, _ in reference}
    techniques = [name for name in ordered(name for group in groups for name in group.series) if name in names]
    rows = []
    for group in groups:
        cells = [_beside(group, name, reference.get((name, group.ratio))) for name in techniques]
        rows.append([group.label, *cells])
    improvements = [_improvements(groups, name, reference) for name in techniques]
    if any(improvements):
        rows.append(["average improvement", *improvements])
    return table(["ratio", *techniques], rows)


def _beside(group: Group, technique: str, theirs: float | None) -> str:
    if theirs is None or technique not in group.series:
        return ""
    ours = group.series[technique].spread("top1").mean or 0.0
    return f"{ours:.4f} ({ours - theirs:+.4f})"


def _improvements(groups: Sequence[Group], technique: str, reference: Reference) -> str:
    gains = [
        (gain, reference[technique, group.ratio] - reference[BASELINE, group.ratio])
        for group in groups
        if (gain := group.improvement(technique)) is not None
        and {(technique, group.ratio), (BASELINE, group.ratio)} <= reference.keys()
    ]
    if technique == BASELINE or not gains:
        return ""
    ours, theirs = np.mean(gains, axis=0)
    return f"{ours:+.4f} (there {theirs:+.4f})"


def reference_findings(groups: Sequence[Group], reference: Reference) -> list[str]:
    """Say which of our figures lie below the course project's, and whether its order of techniques holds here."""
    pairs = [
        (group, name, series.spread("top1").mean or 0.0, reference[name, group.ratio])
        for group in groups
        for name, series in group.series.items()
        if (name, group.ratio) in reference
    ]
    below = [
        f"`{name}` at {group.label} ({ours - theirs:+.4f})" for group, name, ours, theirs in pairs if ours < theirs
    ]
    return [
        f"Below the course project's figure: {', '.join(below)}." if below else "None is below the course project's.",
        *(line for group in groups if (line := _order(group))),
    ]


def _order(group: Group) -> str:
    chain = ("stacking-wl", "stacking", BASELINE)
    if any(name not in group.series for name in chain):
        return ""
    found = sorted(chain, key=lambda name: -(group.series[name].spread("top1").mean or 0.0))
    holds = "as there" if tuple(found) == chain else "not as there: stacking-wl above stacking above baseline"
    return f"Ratio {group.label}: {' above '.join(found)}, {holds}."
