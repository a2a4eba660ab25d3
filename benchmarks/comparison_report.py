"""The comparison as a page and a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.comparison_places import place
from benchmarks.comparison_rows import HTTP, IN_PROCESS, OPEN_LOOP, Row
from benchmarks.report import machine_line, table
from tailstack.files import whole_file

_TITLES = {
    IN_PROCESS: "In process: images per second by batch size",
    HTTP: "Over HTTP: requests per second by requests under way",
    OPEN_LOOP: "Over HTTP, so many requests a second whether or not the server follows",
}
_OURS, _PEERS = "#0072B2", "#9A9A9A"
_HEADER = ("", "version", "at", "place", "images/s", "beside ours", "p50 ms", "p99 ms", "server CPU ms")


def markdown(rows: Sequence[Row], machine: Mapping[str, Any], notes: Sequence[str]) -> str:
    """Return the page: one table for each way of measuring, notes, and what it was measured on."""
    sections = ["# Beside what you would use instead"]
    for where, title in _TITLES.items():
        part = _part(rows, where)
        # In the open loop all answer what they are sent.
        lines = [_line(row, "-" if where == OPEN_LOOP else str(place(row, part))) for row in part]
        if lines:
            sections.append(table(_HEADER, lines, title))
    return "\n\n".join([*sections, *notes, machine_line({"machine": machine})]) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the figure as PNG: bars of images per second for each batch size and concurrency, and of p99 at a rate."""
    panels = [
        (where, at, [row for row in _part(rows, where) if row["batch_or_concurrency"] == at])
        for where in _TITLES
        for at in sorted({row["batch_or_concurrency"] for row in _part(rows, where)})
    ]
    figure = Figure(figsize=(12, 3.4 * -(-len(panels) // 2)), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (where, at, part) in enumerate(panels, start=1):
        _bars(figure.add_subplot(-(-len(panels) // 2), 2, number), where, at, part)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _bars(axes: Axes, where: str, at: float, part: Sequence[Row]) -> None:
    late = where == OPEN_LOOP
    values = [row["p99_ms"] if late else row["images_per_second"] for row in part]
    names = [row["system"] for row in part]
    bars = axes.barh(names, values, color=[_OURS if name.startswith("tailstack") else _PEERS for name in names])
    axes.bar_label(bars, fmt="%.0f" if max(values) >= 100 else "%.1f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    title = {
        IN_PROCESS: f"in process, batch {at:g}: images/s",
        HTTP: f"HTTP, concurrency {at:g}: requests/s",
        OPEN_LOOP: f"HTTP, {at:g} requests/s: p99 in ms (less is better)",
    }
    axes.set_title(title[where], fontsize=10)


def _line(row: Row, rank: str) -> list[str]:
    cpu = row["server_cpu_ms_per_request"]
    return [
        row["system"],
        row["version"],
        f"{row['batch_or_concurrency']:g}",
        rank,
        f"{row['images_per_second']:.1f}",
        f"{row['relative_to_ours']:.2f}",
        f"{row['p50_ms']:.1f}",
        f"{row['p99_ms']:.1f}",
        "-" if cpu is None else f"{cpu:.1f}",
    ]


def _part(rows: Sequence[Row], where: str) -> list[Row]:
    return [row for row in rows if row["where"] == where]
