"""Cost and worth as a table and a figure."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, ScalarFormatter

from benchmarks.report import machine_line, table
from tailstack.files import whole_file

_COLOURS = (*(0, 2, 4, 6, 8, 10, 12, 16, 18), *(1, 3, 5, 7, 9, 11, 13, 17, 19))
"""Places in the colour map, the dark of each pair first, without its grey, which stands for runtimes."""
_MARKERS = {"onnxruntime": "o", "openvino": "^", "torch": "s"}


def markdown(rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> str:
    """Return the page: one table for each number of threads and batch size, and what it was measured on."""
    header = ("", "ms per image", "x the cheapest learner", "top-1", "few-shot", "ECE", "learners used")
    sections = ["# Accuracy against cost"]
    for threads, batch in _settings(rows):
        lines = [
            [
                _name(row),
                f"{row['ms_per_image']:.2f}",
                f"{row['relative_to_lite0_fp32']:.2f}",
                f"{row['top1']:.4f}",
                "-" if row["few"] is None else f"{row['few']:.4f}",
                f"{row['ece']:.4f}",
                f"{row['learners_used']:.2f}",
            ]
            for row in rows
            if (row["threads"], row["batch"]) == (threads, batch)
        ]
        sections.append(table(header, lines, f"Batch {batch}, {threads} thread(s)"))
    return "\n\n".join([*sections, machine_line({"machine": machine})]) + "\n"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the figure: top-1 over cost, one panel for each number of threads and batch size, as PNG."""
    settings = _settings(rows)
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    colours = dict(zip(variants, cycle(map(tuple, colormaps["tab20"](_COLOURS))), strict=False))
    figure = Figure(figsize=(8.6, 3.4 * -(-len(settings) // 2)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(-(-len(settings) // 2), 2, sharex=True, sharey=True, squeeze=False).flat
    for axes, (threads, batch) in zip(panels, settings, strict=False):
        for row in rows:
            if (row["threads"], row["batch"]) != (threads, batch):
                continue
            x, y = row["relative_to_lite0_fp32"], 100 * row["top1"]
            axes.plot(x, y, _MARKERS[row["runtime"]], color=colours[row["variant"]], markersize=7, alpha=0.8)
        axes.axvline(1, color="#7A7A7A", linewidth=0.8, linestyle=":")
        axes.set(title=f"batch {batch}, {threads} thread(s)", xscale="log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks([1, 2, 4, 8, 16, 32])
    figure.supxlabel("cost, x the cheapest learner in fp32 (ONNX Runtime)")
    figure.supylabel("top-1 on test, %")
    by_colour = [Line2D([], [], color=colour, marker="o", linestyle="", label=name) for name, colour in colours.items()]
    used = {row["runtime"] for row in rows}
    by_marker = [
        Line2D([], [], color="#7A7A7A", marker=marker, linestyle="", label=runtime)
        for runtime, marker in _MARKERS.items()
        if runtime in used
    ]
    figure.legend(handles=[*by_colour, *by_marker], loc="outside upper center", ncols=4, frameon=False)
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=115)


def _settings(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    return sorted({(row["threads"], row["batch"]) for row in rows})


def _name(row: Mapping[str, Any]) -> str:
    return str(row["variant"]) if row["runtime"] == "onnxruntime" else f"{row['variant']}, {row['runtime']}"
