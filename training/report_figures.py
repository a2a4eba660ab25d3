"""The figures of one data set: each a PNG, its numbers beside it as CSV, and a line that says how to read it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tailstack.figures import (
    BASELINE_COLOUR,
    CHOSEN_COLOUR,
    GROUP_COLOURS,
    INK,
    Row,
    drawing,
    percent,
    short,
    write_csv,
)
from tailstack.metrics import CALIBRATION_BINS, FEW_UNDER, MANY_OVER, groups
from tailstack.plots import (
    NAMED,
    WRITTEN,
    confusion_height,
    confusion_order,
    count_axis,
    draw_confusion,
    draw_reliability,
)
from training.report_data import BASELINE, Floats, Group, Series, spread
from training.report_fit import fit_counts
from training.report_tables import GROUPS, number

ALIKE = 1.1
"""Times that the largest class has the smallest one's images below which all count as having the same."""
LABELLED_BARS = 36
DASHES = ("-", "--", ":", "-.")


class Shown(NamedTuple):
    """A figure that was written."""

    name: str
    """Of its files, without the suffix."""
    title: str
    caption: str


def group_figures(group: Group, chosen: str | None, folder: Path) -> list[Shown]:
    """Write every figure of a data set that its cells give, and return them in the order of the page."""
    featured = group.featured(chosen)
    shown = []
    for name, draw in _FIGURES.items():
        path = folder / f"{group.slug}-{name}.png"
        caption = draw(group, featured, path)
        if caption:
            shown.append(Shown(path.stem, TITLES[name], caption))
    return shown


def colour(series: Series) -> str:
    """Return the colour that a featured series has in every figure."""
    return BASELINE_COLOUR if series.technique == BASELINE else CHOSEN_COLOUR


def _histogram(group: Group, _featured: Sequence[Series], path: Path) -> str:
    order = np.argsort(-group.counts, kind="stable")
    counts, names = group.counts[order], [group.cell.run.classes[i] for i in order]
    sizes = [GROUPS[number] for number in groups(counts)]
    with drawing(path, 3.4) as (axis,):
        for name in GROUPS:
            members = [k for k, own in enumerate(sizes) if own == name]
            if members:
                label = f"{name}: {len(members)} {'class' if len(members) == 1 else 'classes'}"
                axis.bar(members, counts[members], color=GROUP_COLOURS[name], label=label, width=0.8)
        axis.set(ylabel="training images", xlim=(-0.8, len(counts) - 0.2))
        _name_classes(axis, names)
        axis.grid(visible=False, axis="x")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    rows: list[Row] = [[name, int(count), own] for name, count, own in zip(names, counts, sizes, strict=True)]
    write_csv(path.with_suffix(".csv"), ("class", "training_images", "group"), rows)
    return f"{counts.sum():,} training images, from {counts[0]} down to {counts[-1]} a class."


def _name_classes(axis: Axes, names: Sequence[str]) -> None:
    if len(names) > NAMED:
        axis.set_xlabel("classes, by falling number of training images")
        return
    size = 9 if len(names) <= 30 else 7.5
    axis.set_xticks(range(len(names)), list(map(short, names)), rotation=90, fontsize=size)
    axis.tick_params(axis="x", length=0)


def _accuracy_by_count(group: Group, featured: Sequence[Series], path: Path) -> str:
    counts = group.counts.astype(np.float64)
    if not group.cell.run.per_class or counts.max() < ALIKE * counts.min():
        return ""
    fitted = False
    with drawing(path, 4.2) as (axis,):
        for series in featured:
            axis.scatter(counts, series.recall, s=22, color=colour(series), alpha=0.65, linewidth=0)
            fit = fit_counts(group, series)
            axis.plot([], [], color=colour(series), marker="o", markersize=5, label=series.technique)
            if fit:
                fitted = True
                grid = np.geomspace(counts.min(), counts.max(), 100)
                middle, low, high = fit.curve(grid)
                axis.fill_between(grid, low, high, color=colour(series), alpha=0.13, linewidth=0)
                axis.plot(grid, middle, color=colour(series))
        count_axis(axis, counts)
        axis.set(ylabel="test accuracy of a class", ylim=(-0.03, 1.03))
        percent(axis)
        axis.legend(loc="lower right")
    header = ("class", "training_images", *(series.technique for series in featured))
    columns = [series.recall for series in featured]
    rows: list[Row] = [
        [name, int(count), *(float(column[k]) for column in columns)]
        for k, (name, count) in enumerate(zip(group.cell.run.classes, group.counts, strict=True))
    ]
    write_csv(path.with_suffix(".csv"), header, rows)
    trend = " The lines are a logistic fit against the logarithm of the count, with its 95% interval." if fitted else ""
    return f"A point is a class: its accuracy on the test split against its training images.{trend}"


def _groups(group: Group, _featured: Sequence[Series], path: Path) -> str:
    present = [name for name in GROUPS if any(s.spread(name).mean is not None for s in group.series.values())]
    if not present:
        return ""
    wide = 0.8 / len(present)
    with drawing(path, 3.6) as (axis,):
        for k, name in enumerate(present):
            spreads = [series.spread(name) for series in group.series.values()]
            places = np.arange(len(spreads)) + (k - (len(present) - 1) / 2) * wide
            means = [math.nan if item.mean is None else item.mean for item in spreads]
            errors = [item.std or 0.0 for item in spreads]
            style = {"elinewidth": 1, "capsize": 2 if any(errors) else 0, "ecolor": INK}
            yerr = errors if any(errors) else None
            bars = axis.bar(
                places, means, wide * 0.94, color=GROUP_COLOURS[name], label=name, yerr=yerr, error_kw=style
            )
            if len(spreads) * len(present) <= LABELLED_BARS:
                axis.bar_label(bars, [f"{100 * mean:.0f}" for mean in means], fontsize=7.5, padding=3)
        axis.set_xticks(range(len(group.series)), list(group.series), rotation=0 if len(group.series) <= 7 else 30)
        axis.set(ylabel="test accuracy", ylim=(0, 1.06), yticks=np.linspace(0, 1, 6))
        half = max(len(group.series), 4) / 2
        axis.set_xlim((len(group.series) - 1) / 2 - half, (len(group.series) - 1) / 2 + half)
        axis.grid(visible=False, axis="x")
        percent(axis)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    rows: list[Row] = [
        [series.technique, name, *series.spread(name)] for series in group.series.values() for name in GROUPS
    ]
    write_csv(path.with_suffix(".csv"), ("technique", "group", "mean", "std"), rows)
    missing = [name for name in GROUPS if name not in present]
    limits = f"many: more than {MANY_OVER} training images, few: fewer than {FEW_UNDER}"
    return f"Accuracy by size of class ({limits})." + (f" No class here is {' or '.join(missing)}." if missing else "")


def _confusion(group: Group, featured: Sequence[Series], path: Path) -> str:
    series = featured[-1]
    matrix = series.confusion
    if matrix is None:
        return ""
    order = np.argsort(-group.counts, kind="stable")
    names = group.cell.run.classes
    rows: list[Row] = [[names[i], names[j], float(matrix[i, j])] for i in order for j in order if matrix[i, j]]
    write_csv(path.with_suffix(".csv"), ("true", "predicted", "share"), rows)
    order = confusion_order(matrix, group.counts)
    with drawing(path, confusion_height(len(order))) as (axis,):
        draw_confusion(axis, matrix[np.ix_(order, order)], [names[i] for i in order], group.counts[order])
    part_of = f" The {len(order)} classes of the lowest accuracy." if len(names) > NAMED else ""
    return (
        f"What `{series.technique}` takes a class for (blue is right, orange is wrong), in percent of its test images, "
        f"written from {WRITTEN:.0%}; the largest classes come first.{part_of}"
    )


def _training_curves(group: Group, featured: Sequence[Series], path: Path) -> str:
    if not any(rows for series in featured for rows in series.cells[0].curves.values()):
        return ""
    rows: list[Row] = []
    with drawing(path, 3.7, panels=2, share_y=False) as (left, right):
        for series in featured:
            for k, name in enumerate(series.cells[0].curves):
                label = f"{series.technique} {name}" if len(series.cells[0].curves) > 1 else series.technique
                left.plot([], [], DASHES[k % len(DASHES)], color=colour(series), label=label)
                for key, axis, alpha in (("val_top1", left, 1.0), ("val_loss", right, 1.0), ("train_loss", right, 0.4)):
                    rows += _plot_curve(axis, series, (k, name, key), alpha)
        left.set(xlabel="epoch", ylabel="validation top-1", ylim=(0, 1))
        percent(left)
        right.set(xlabel="epoch", ylabel="loss (pale: on training images)", ylim=(0, None))
        left.legend(loc="lower right", fontsize=8)
        for axis in (left, right):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    write_csv(path.with_suffix(".csv"), ("technique", "learner", "figure", "epoch", "mean", "std"), rows)
    return (
        "Training of each learner. The validation loss is plain cross-entropy; the training loss has the technique's "
        "weights and offsets in it, so that the two are not on the same scale."
    )


def _plot_curve(axis: Axes, series: Series, learner: tuple[int, str, str], alpha: float) -> list[Row]:
    k, name, key = learner
    epochs, mean, std = curve(series, name, key)
    marker = "." if len(epochs) == 1 else ""
    axis.plot(epochs, mean, DASHES[k % len(DASHES)], color=colour(series), alpha=alpha, marker=marker)
    axis.fill_between(epochs, mean - std, mean + std, color=colour(series), alpha=0.12, linewidth=0)
    return [[series.technique, name, key, int(epoch), float(mean[i]), float(std[i])] for i, epoch in enumerate(epochs)]


def curve(series: Series, learner: str, key: str) -> tuple[Floats, Floats, Floats]:
    """Return epochs, mean and standard deviation (0 for one seed) over seeds of a learner's logged figure."""
    by_epoch: dict[int, list[float]] = {}
    for cell in series.cells:
        for row in cell.curves.get(learner, []):
            if key in row:
                by_epoch.setdefault(int(row["epoch"]), []).append(row[key])
    spreads = [spread(values) for _, values in sorted(by_epoch.items())]
    means, stds = [item.mean or 0.0 for item in spreads], [item.std or 0.0 for item in spreads]
    return np.array(sorted(by_epoch), dtype=np.float64), np.array(means), np.array(stds)


def _reliability(group: Group, featured: Sequence[Series], path: Path) -> str:
    if not all(cell.run.reliability for series in featured for cell in series.cells):
        return ""
    rows: list[Row] = []
    with drawing(path, 4.2, panels=len(featured)) as axes:
        for axis, series in zip(axes, featured, strict=True):
            images, confidence, accuracy = reliability_bins(series)
            draw_reliability(axis, images, confidence, accuracy, colour(series))
            axis.set_title(f"{series.technique}: ECE {number(series.spread('ece').mean, 3)}")
            rows += [
                [series.technique, i / CALIBRATION_BINS, int(images[i]), float(confidence[i]), float(accuracy[i])]
                for i in np.flatnonzero(images)
            ]
        axes[0].set_ylabel("share that is right")
    write_csv(path.with_suffix(".csv"), ("technique", "bin_from", "images", "confidence", "accuracy"), rows)
    return (
        "How often an answer of some confidence is right; on the dashed line confidence can be taken at "
        "its word. The area of a dot is the share of images in its bin."
    )


def reliability_bins(series: Series) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Return images, mean confidence and accuracy of every bin over all seeds, each `[bins]`; NaN in empty bins."""
    images = np.zeros(CALIBRATION_BINS, dtype=np.int64)
    sums = np.zeros((2, CALIBRATION_BINS))
    for cell in series.cells:
        for item in cell.run.reliability:
            index = int(np.clip(np.ceil(item["confidence"] * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1))
            images[index] += item["images"]
            sums[:, index] += item["images"] * np.array([item["confidence"], item["accuracy"]])
    with np.errstate(invalid="ignore"):
        confidence, accuracy = sums / images
    return images, confidence, accuracy


TITLES = {
    "class-histogram": "Images of each class",
    "accuracy-by-count": "Accuracy of a class against its images",
    "many-medium-few": "Many, medium and few",
    "confusion": "Confusion matrix",
    "training-curves": "Training curves",
    "reliability": "Reliability",
}
_FIGURES: dict[str, Callable[[Group, Sequence[Series], Path], str]] = {
    "class-histogram": _histogram,
    "accuracy-by-count": _accuracy_by_count,
    "many-medium-few": _groups,
    "confusion": _confusion,
    "training-curves": _training_curves,
    "reliability": _reliability,
}
