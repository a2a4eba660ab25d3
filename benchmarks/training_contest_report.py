"""Training beside timm's script, as a table, a page and a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.report import machine_line, table
from tailstack.files import whole_file

_OURS, _PEERS = "#0072B2", "#9A9A9A"


class Row(TypedDict):
    """One system, trained once."""

    system: str
    version: str
    architectures: list[str]
    """Of its learners."""
    resolution: int
    """Height and width, in pixels, that they see in the end."""
    images: int
    """Training images that went through a learner, over all epochs and learners."""
    seconds: float
    """Wall time of the whole command."""
    images_per_second: float
    """Of that time. Where the resolution grows, the first ones are smaller."""
    top1: float
    balanced: float
    many: float | None
    medium: float | None
    few: float | None
    settings: str
    """Flags that are its own."""


def markdown(rows: Sequence[Row], machine: Mapping[str, Any]) -> str:
    """Return the page: the table, each system's settings, and what it was measured on."""
    header = ("", "version", "learners", "pixels", "seconds", "images/s", "top-1", "balanced", "many", "medium", "few")
    lines = [_line(row) for row in rows]
    settings = "\n".join(f"- {row['system']}: `{row['settings']}`" for row in rows)
    sections = [
        "# Training beside timm's script",
        "The whole command's wall time, from the same weights, on the same photos and cores; accuracy on the test "
        "split, by the same figures. `images/s` are training images over that time.",
        table(header, lines, "Accuracy after equal time"),
        settings,
        machine_line({"machine": machine}),
    ]
    return "\n\n".join(sections) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the figure as PNG: bars of top-1 and of training images per second."""
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    names = [f"{row['system']} ({row['seconds']:.0f} s)" for row in rows]
    colours = [_OURS if name.startswith("tailstack") else _PEERS for name in names]
    panels = {
        "top-1 on test, %": [100 * row["top1"] for row in rows],
        "training images/s": [row["images_per_second"] for row in rows],
    }
    for axes, (title, values) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        axes.bar_label(axes.barh(names, values, color=colours), fmt="%.1f", padding=3, fontsize=8)
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, fontsize=10)
    # One axis for both: the first system on top.
    figure.axes[0].invert_yaxis()
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _line(row: Row) -> list[str]:
    figures = (row["top1"], row["balanced"], row["many"], row["medium"], row["few"])
    return [
        row["system"],
        row["version"],
        ", ".join(row["architectures"]),
        str(row["resolution"]),
        f"{row['seconds']:.0f}",
        f"{row['images_per_second']:.1f}",
        *("-" if value is None else f"{value:.4f}" for value in figures),
    ]
