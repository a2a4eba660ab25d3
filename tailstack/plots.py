"""Figures that training, export and benchmarks all draw, into panels of `tailstack.figures.drawing`."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from tailstack.figures import INK, percent, short
from tailstack.metrics import CALIBRATION_BINS

Floats = npt.NDArray[np.float64]

SHADED, WRITTEN = 0.01, 0.05
"""Shares of a class's images from which a confusion matrix has a colour, and a figure."""
NAMED = 60
"""Classes beyond which an axis doesn't name each."""


def confusion_order(matrix: Floats, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the classes that a confusion matrix shows, the largest first: all, or the `NAMED` of lowest accuracy.

    Of more than `NAMED`, those without a test image have no accuracy, and aren't among them.

    Args:
        matrix: share of a true class (row) that is taken for a class (column), `[classes, classes]`.
        counts: training images of each class, `[classes]`.
    """
    order = np.argsort(-counts, kind="stable")
    if len(order) > NAMED:
        tested = matrix.any(axis=1)
        rising = np.argsort(np.where(tested, np.diag(matrix), np.inf), kind="stable")
        order = np.sort(rising[: min(NAMED, tested.sum())])
        order = order[np.argsort(-counts[order], kind="stable")]
    return order


def confusion_height(classes: int) -> float:
    """Return the height in inches of a figure with a confusion matrix of so many classes."""
    return float(np.clip(2.4 + 0.12 * classes, 4.6, 8.4))


def draw_confusion(axis: Axes, matrix: Floats, names: Sequence[str], counts: npt.NDArray[np.int64]) -> None:
    """Draw shares in colours (blue is right, orange is wrong), written in percent from `WRITTEN`.

    Args:
        axis: panel of a figure of `confusion_height`.
        matrix: share of a true class (row) that is taken for a class (column), `[classes, classes]`.
        names: of the classes, in the matrix's order.
        counts: training images of each class, `[classes]`.
    """
    right = np.eye(len(matrix), dtype=bool)
    for kept, colours, most in ((right, "Blues", 1.0), (~right, "Oranges", 0.4)):
        shares = np.ma.masked_array(matrix, ~kept | (matrix < SHADED))
        axis.imshow(shares, cmap=colours, vmin=0, vmax=most, interpolation="nearest", aspect="auto")
    labels = [f"{short(name)}  {count}" for name, count in zip(names, counts, strict=True)]
    size = float(np.clip(300 / len(matrix), 7.0, 11))
    axis.set_xticks(range(len(matrix)), list(map(short, names)), rotation=90, fontsize=size)
    axis.set_yticks(range(len(matrix)), labels, fontsize=size)
    axis.set(xlabel="predicted class", ylabel="true class, with its training images")
    axis.tick_params(length=0)
    axis.grid(visible=False)
    lines = np.arange(0.5, len(matrix) - 1)
    axis.hlines(lines, -0.5, len(matrix) - 0.5, color="#EEEEEE", linewidth=0.5, zorder=0)
    axis.vlines(lines, -0.5, len(matrix) - 0.5, color="#EEEEEE", linewidth=0.5, zorder=0)
    _write_shares(axis, matrix)


def _write_shares(axis: Axes, matrix: Floats) -> None:
    """Write the percentage of what is often answered."""
    size = float(np.clip(330 / len(matrix), 6.5, 11))
    for i, j in np.argwhere(matrix >= WRITTEN):
        dark = matrix[i, j] > (0.55 if i == j else 0.25)
        text = f"{100 * matrix[i, j]:.0f}"
        axis.text(j, i, text, ha="center", va="center", fontsize=size, color="white" if dark else INK)


def draw_reliability(
    axis: Axes, images: npt.NDArray[np.int64], confidence: Floats, accuracy: Floats, colour: str
) -> None:
    """Draw how often an answer of some confidence is right.

    Args:
        axis: the panel.
        images: of each of the `CALIBRATION_BINS` bins, `[bins]`.
        confidence: mean of each bin; not read where it has no images.
        accuracy: share of each bin that is right; not read where it has no images.
        colour: of bars and dots.
    """
    full = images > 0
    places = (np.flatnonzero(full) + 0.5) / CALIBRATION_BINS
    axis.bar(places, accuracy[full], 0.94 / CALIBRATION_BINS, color=colour, alpha=0.3)
    areas = np.maximum(700 * images[full] / images.sum(), 6)
    axis.scatter(confidence[full], accuracy[full], s=areas, color=colour, zorder=3, clip_on=False)
    axis.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--")
    axis.set(xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
    percent(axis)
    percent(axis, x=True)


def count_axis(axis: Axes, counts: Floats) -> None:
    """Make the horizontal axis one of training images a class, logarithmic where they differ much."""
    axis.set_xlabel("training images of the class")
    if counts.min() > 0 and counts.max() / counts.min() > 2:
        axis.set_xscale("log")
        steps = [base * 10**power for power in range(7) for base in (1, 2, 5)]
        axis.set_xticks([step for step in steps if counts.min() <= step <= counts.max()])
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
