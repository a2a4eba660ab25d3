"""How cost grows, as a page and a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from benchmarks.growth_rows import BATCH, CLASSES, CONCURRENCY, LEARNERS, PIXELS, Row
from benchmarks.report import cell, machine_line, table
from tailstack.files import whole_file

_TITLES = {
    LEARNERS: "Learners, in process",
    CLASSES: "Classes, in process",
    PIXELS: "Height and width in pixels, in process",
    BATCH: "Images a batch, in process",
    CONCURRENCY: "Requests under way, over HTTP",
}
_DELAY = "Delay by requests under way, over HTTP"
_COSTS = (LEARNERS, CLASSES, PIXELS)
"""Drawn as milliseconds an image at each batch size; the others as images per second."""
_COLOURS = ("#0072B2", "#D55E00")


def markdown(rows: Sequence[Row], architecture: str, machine: Mapping[str, Any]) -> str:
    """Return the page: one table for each axis, and what it was measured on."""
    sections = [
        "# How cost grows",
        f"Learners, classes and pixels: untrained `{architecture}`, one thing changed at a time (else one learner, "
        f"{_second(rows, CLASSES)} classes, {_second(rows, PIXELS)} pixels). Batch and HTTP: the exported file; the "
        "picture is a JPEG of 500x375, and the load is wrk's, on the same cores. `beside the first` is images per "
        "second beside the table's first row of the same batch or workers.",
    ]
    for axis, title in _TITLES.items():
        part = _part(rows, axis)
        if part:
            sections.append(_table(axis, title, part))
    return "\n\n".join([*sections, machine_line({"machine": machine})]) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the figure as PNG: small multiples, one for each axis and one more for the delay over HTTP."""
    figure = Figure(figsize=(13, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, axis in zip(figure.subplots(2, 3).flat, (*_TITLES, _DELAY), strict=True):
        part = _part(rows, CONCURRENCY if axis == _DELAY else axis)
        if part:
            _panel(axes, axis, part)
        else:
            axes.set_axis_off()
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _panel(axes: Axes, axis: str, rows: Sequence[Row]) -> None:
    for colour, (label, series) in zip(_COLOURS, _series(axis, rows).items(), strict=False):
        values = [row["value"] for row in series]
        if axis == _DELAY:
            # None, where nothing was answered, becomes a gap.
            delays = np.array([[row["p50_ms"], row["p99_ms"]] for row in series], dtype=np.float64)
            axes.plot(values, delays[:, 0], "o-", color=colour, label=f"{label}, median")
            axes.plot(values, delays[:, 1], "o:", color=colour, label=f"{label}, 99%")
        else:
            axes.plot(values, [_height(axis, row) for row in series], "o-", color=colour, label=label)
    if axis in (CLASSES, BATCH, CONCURRENCY, _DELAY):
        axes.set_xscale("log", base=10 if axis == CLASSES else 2)
    if axis == _DELAY:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({row["value"] for row in rows}))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(_TITLES.get(axis, axis), fontsize=10)
    axes.set_ylabel("ms" if axis == _DELAY else "ms an image" if axis in _COSTS else "images/s")
    if axis != BATCH:
        axes.legend(fontsize=8, frameon=False)


def _height(axis: str, row: Row) -> float:
    return 1e3 / row["images_per_second"] if axis in _COSTS else row["images_per_second"]


def _series(axis: str, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the lines of a panel by their label."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        label = f"batch {row['batch']}" if axis in _COSTS else f"{row['workers']} worker(s)"
        found.setdefault(label, []).append(row)
    return found


def _table(axis: str, title: str, rows: Sequence[Row]) -> str:
    header = [axis, "images/s", "beside the first", "p50 ms", "p99 ms"]
    if axis == CONCURRENCY:
        header += ["workers", "server CPU ms", "refused", "load cores"]
    elif axis in _COSTS:
        header.append("batch")
    return table(header, [_line(axis, row) for row in rows], title)


def _line(axis: str, row: Row) -> list[str]:
    cells = [
        str(row["value"]),
        f"{row['images_per_second']:.1f}",
        cell(row["relative_to_first"], ".2f"),
        cell(row["p50_ms"], ".1f"),
        cell(row["p99_ms"], ".1f"),
    ]
    if axis == CONCURRENCY:
        load = [
            cell(row["server_cpu_ms_per_request"], ".1f"),
            cell(row["refused"], ".1%"),
            cell(row["load_cores"], ".2f"),
        ]
        return [*cells, str(row["workers"]), *load]
    return [*cells, str(row["batch"])] if axis in _COSTS else cells


def _part(rows: Sequence[Row], axis: str) -> list[Row]:
    return [row for row in rows if row["axis"] == axis]


def _second(rows: Sequence[Row], axis: str) -> int:
    """Return what an axis has where another one grows."""
    return sorted({row["value"] for row in _part(rows, axis)})[1]
