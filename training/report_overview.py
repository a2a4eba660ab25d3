"""Figures over all data sets of a comparison."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tailstack.figures import BASELINE_COLOUR, CHOSEN_COLOUR, GREY, INK, Row, drawing, percent, write_csv
from training.report_data import BASELINE, Floats, Group
from training.report_figures import Shown
from training.report_tables import number

MOST_PANELS = 4
LABEL_GAP = 0.035
"""Least distance of two labels, as a share of a panel's height."""
Point = tuple[float, float, str]
"""x, y and name."""


def overview_figures(groups: Sequence[Group], chosen: str | None, folder: Path) -> list[Shown]:
    """Write accuracy by technique, and accuracy against parameters, of the data sets with several techniques."""
    compared = [group for group in groups if len(group.series) > 1]
    parts = [compared[k : k + MOST_PANELS] for k in range(0, len(compared), MOST_PANELS)]
    shown = []
    for k, part in enumerate(parts):
        suffix = f"-{k + 1}" if len(parts) > 1 else ""
        shown.append(_accuracy(part, chosen, folder / f"accuracy{suffix}.png"))
        shown.append(_parameters(part, chosen, folder / f"accuracy-by-parameters{suffix}.png"))
    return shown


def _colour(technique: str, chosen: str | None) -> str:
    return BASELINE_COLOUR if technique == BASELINE else CHOSEN_COLOUR if technique == chosen else GREY


def _accuracy(groups: Sequence[Group], chosen: str | None, path: Path) -> Shown:
    names = list(dict.fromkeys(name for group in groups for name in group.series))
    rows: list[Row] = []
    with drawing(path, 1.2 + 0.32 * len(names), panels=len(groups)) as panels:
        for axis, group in zip(panels, groups, strict=True):
            for name, series in group.series.items():
                mean, std = series.spread("top1")
                rows.append([group.label, name, mean, std])
                place, colour = names.index(name), _colour(name, chosen)
                axis.errorbar(mean or 0, place, xerr=std, fmt="o", color=colour, markersize=7, capsize=3)
                axis.annotate(number(mean, 3), (mean or 0, place), (0, 7), fontsize=8, **_ABOVE)
                if name == BASELINE:
                    axis.axvline(mean or 0, color=BASELINE_COLOUR, linewidth=1, linestyle="--")
            axis.set_title(f"ratio {group.label}")
            axis.set(xlabel="test top-1", ylim=(len(names) - 0.5, -0.8))
            axis.margins(x=0.16)
            axis.xaxis.set_major_locator(MaxNLocator(4))
            percent(axis, x=True)
        panels[0].set_yticks(range(len(names)), names)
    write_csv(path.with_suffix(".csv"), ("ratio", "technique", "top1_mean", "top1_std"), rows)
    spreads = " Bars are the standard deviation over seeds." if any(row[3] is not None for row in rows) else ""
    return Shown(
        path.stem, "Accuracy by technique", f"Top-1 on the test split; the dashed line is the baseline.{spreads}"
    )


_ABOVE: dict[str, Any] = {"ha": "center", "color": INK, "textcoords": "offset points"}


def _parameters(groups: Sequence[Group], chosen: str | None, path: Path) -> Shown:
    rows: list[Row] = []
    top1s = [series.spread("top1").mean or 0.0 for group in groups for series in group.series.values()]
    with drawing(path, 5.8, panels=len(groups)) as panels:
        for axis, group in zip(panels, groups, strict=True):
            points = [
                (series.parameters / 1e6, series.spread("top1").mean or 0.0, name)
                for name, series in group.series.items()
            ]
            scatter_named(axis, points, lambda name: _colour(name, chosen), (min(top1s), max(top1s)))
            axis.set_title(f"ratio {group.label}")
            axis.set_xlabel("parameters, millions")
            rows += [[group.label, name, parameters, top1] for parameters, top1, name in points]
        panels[0].set_ylabel("test top-1")
        percent(panels[0])
    write_csv(path.with_suffix(".csv"), ("ratio", "technique", "parameters_millions", "top1_mean"), rows)
    return Shown(path.stem, "Accuracy against parameters", "Top-1 against the parameters of all learners together.")


def scatter_named(
    axis: Axes, points: Sequence[Point], colour: Callable[[str], str], limits: tuple[float, float]
) -> None:
    """Draw points with their names, each to the side that has room, at heights apart: names of both sides may meet."""
    xs, ys = (np.array([point[k] for point in points], dtype=np.float64) for k in (0, 1))
    axis.scatter(xs, ys, s=42, color=[colour(name) for _, _, name in points], zorder=3)
    room = 0.14 * (limits[1] - limits[0]) or 0.01
    axis.set(xlim=(0, 1.12 * xs.max()), ylim=(limits[0] - room, limits[1] + room))
    gap = LABEL_GAP * (limits[1] - limits[0] + 2 * room)
    rising = np.argsort(ys, kind="stable")
    for i, place in zip(rising.tolist(), _apart(ys[rising], gap), strict=True):
        left = xs[i] > 0.5 * xs.max()
        moved = abs(place - ys[i]) > gap / 3
        axis.annotate(
            points[i][2],
            (xs[i], ys[i]),
            (-9 if left else 9, place),
            textcoords=("offset points", "data"),
            fontsize=8,
            ha="right" if left else "left",
            va="center",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6} if moved else None,
        )


def _apart(places: Floats, gap: float) -> Floats:
    """Return rising places moved by little, so that neighbours are `gap` apart."""
    moved = places.copy()
    for _ in range(200):
        for i in range(len(moved) - 1):
            lack = max(gap - (moved[i + 1] - moved[i]), 0)
            moved[i : i + 2] += np.array([-lack / 2, lack / 2])
    return moved
