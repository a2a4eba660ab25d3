"""Figures of a report: one look, small files that are the same bytes for the same numbers, and their data as CSV."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter
from PIL import Image

from tailstack.files import whole_file, write_text

DPI = 115
COLOURS = 256
WIDTH = 8.6
"""Width of a figure, in inches: what a page of Markdown shows without scaling."""
LONGEST = 24
"""Letters of a name."""
INK, GREY = "#222222", "#7A7A7A"
# The palette of Okabe & Ito, which people who don't see all colours tell apart.
BLUE, SKY, ORANGE, VERMILION = "#0072B2", "#56B4E9", "#E69F00", "#D55E00"
GROUP_COLOURS = {"many": BLUE, "medium": SKY, "few": ORANGE}
BASELINE_COLOUR, CHOSEN_COLOUR = VERMILION, BLUE
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "text.parse_math": False,  # a class may be named $5
}

Row = Sequence[str | float | None]


@contextmanager
def drawing(path: Path, height: float, panels: int = 1, *, share_y: bool = True) -> Iterator[list[Axes]]:
    """Yield the panels (side by side) of a figure, and write it to `path` as PNG.

    Raises:
        UserError: `path` can't be written.
    """
    # A user's own matplotlibrc would change the look.
    style: dict[Any, Any] = {**mpl.rcParamsDefault, "backend": "agg", **_STYLE}
    with mpl.rc_context(style):
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)
        axes = figure.subplots(1, panels, sharey=share_y, squeeze=False)
        yield list(axes[0])
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # A palette makes a drawing a third as large; Pillow writes no time into the file.
    drawn = np.asarray(canvas.buffer_rgba())
    pixels = Image.fromarray(drawn).convert("RGB")
    small = pixels.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    with whole_file(path) as part:
        small.save(part, format="PNG", optimize=True)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Row]) -> None:
    """Write a table: floats with four digits, None and NaN as an empty field.

    Raises:
        UserError: `path` can't be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_field(value) for value in row] for row in rows)
    write_text(path, text.getvalue())


def _field(value: str | float | None) -> str | int:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4f}" if isinstance(value, float) else value


def short(name: str) -> str:
    """Return a name that leaves room for the drawing."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def percent(axis: Axes, *, x: bool = False) -> None:
    """Label an axis from 0 to 1 in percent, with the decimals that its range needs to tell the ticks apart."""
    (axis.xaxis if x else axis.yaxis).set_major_formatter(PercentFormatter(1.0))
