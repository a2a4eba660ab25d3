"""The comparison as a page and a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.comparison_places import place
from benchmarks.comparison_rows import HTTP, IN_PROCESS, OPEN_LOOP, Row
from benchmarks.comparison_servers import Absent
from benchmarks.report import cell, machine_line, table
from tailstack.files import whole_file, write_json, write_text

_TITLES = {
    IN_PROCESS: "In process: images per second by batch size",
    HTTP: "Over HTTP: requests per second by requests under way",
    OPEN_LOOP: "Over HTTP, so many requests a second whether or not the server follows",
}
_OURS, _PEERS = "#0072B2", "#9A9A9A"
_HEADER = (
    *("", "version", "at", "place", "images/s", "beside ours", "p50 ms", "p99 ms"),
    *("server CPU ms", "failed", "load cores"),
)


@dataclass
class Comparison:
    """What has been measured so far, and where it is written."""

    output: Path
    machine: dict[str, Any]
    missing: list[str]
    """Parts that are still to come."""
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """For the reader."""
    absent: Absent = field(default_factory=Absent)

    def page(self) -> str:
        """Return the page."""
        notes = [*self.absent.notes, *self.notes]
        if self.missing:
            notes.insert(0, f"**Not all is measured yet. Missing: {', '.join(self.missing)}.**")
        return markdown(self.rows, self.machine, notes)

    def add(self, part: str, rows: Sequence[Row]) -> None:
        """Take the rows of a part, and write all that there is."""
        self.rows += rows
        self.missing.remove(part)
        self.write()

    def write(self) -> None:
        """Write the rows, the page and the figure."""
        write_json(self.output / "compare.json", self.rows)
        write_text(self.output / "compare.md", self.page())
        draw(self.rows, self.output / "compare.png")


def markdown(rows: Sequence[Row], machine: Mapping[str, Any], notes: Sequence[str]) -> str:
    """Return the page: one table for each way of measuring, notes, and what it was measured on."""
    sections = ["# Beside what you would use instead"]
    for where, title in _TITLES.items():
        part = _part(rows, where)
        if part:
            sections += [table(_HEADER, [_line(row, place(row, part)) for row in part], title), *_failing(part)]
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
    values = [(row["p99_ms"] or 0.0) if late else row["images_per_second"] for row in part]
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


def _failing(part: Sequence[Row]) -> list[str]:
    """Return a warning where requests failed."""
    named = [f"{row['system']} at {row['batch_or_concurrency']:g}" for row in part if row["failed"]]
    if not named:
        return []
    return [
        f"**Requests failed: {', '.join(named)}.** An error takes less work than an answer: these have no place. "
        "images/s count good answers alone; percentiles do so in the open loop, and in the closed one count errors too."
    ]


def _line(row: Row, rank: int | None) -> list[str]:
    return [
        row["system"],
        row["version"],
        f"{row['batch_or_concurrency']:g}",
        cell(rank, "d"),
        f"{row['images_per_second']:.1f}",
        cell(row["relative_to_ours"], ".2f"),
        cell(row["p50_ms"], ".1f"),
        cell(row["p99_ms"], ".1f"),
        cell(row["server_cpu_ms_per_request"], ".1f"),
        # One of a thousand is no 0%.
        f"{row['failed']:.2%}" if row["failed"] else "0",
        cell(row["load_cores"], ".2f"),
    ]


def _part(rows: Sequence[Row], where: str) -> list[Row]:
    return [row for row in rows if row["where"] == where]
