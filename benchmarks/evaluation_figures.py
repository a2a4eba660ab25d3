"""The figures of `benchmarks/eval.py`: each a PNG beside the report, and a line that says how to read it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.corruptions import SEVERITIES
from benchmarks.evaluation_contract import Evaluation
from tailstack.figures import BLUE, GREY, GROUP_COLOURS, INK, ORANGE, SKY, VERMILION, drawing, percent, short
from tailstack.metrics import CALIBRATION_BINS, FEW, FEW_UNDER, MANY, MANY_OVER, MEDIUM, confusion, groups
from tailstack.plots import (
    NAMED,
    WRITTEN,
    confusion_height,
    confusion_order,
    count_axis,
    draw_confusion,
    draw_reliability,
)

LINES = (BLUE, ORANGE, SKY, VERMILION)
NAMED_POINTS = 5
"""Classes of the lowest accuracy that have their name beside them."""
_GROUPS = {"many": MANY, "medium": MEDIUM, "few": FEW}


class Shown(NamedTuple):
    """A figure that was written."""

    file: str
    title: str
    caption: str


def draw_figures(found: Evaluation, folder: Path) -> list[Shown]:
    """Write every figure, and return them in the order of the page."""
    figures: dict[str, tuple[str, Callable[[Evaluation, Path], str]]] = {
        "confusion": ("Confusion matrix", _confusion),
        "accuracy-by-count": ("Accuracy of a class against its images", _accuracy_by_count),
        "reliability": ("Reliability", _reliability),
        "latency": ("Latency", _latency),
        "throughput": ("Throughput", _load if "http" in found.report else _throughput),
    }
    if "corruptions" in found.report:
        figures["corruptions"] = ("Under corruptions", _corruptions)
    shown = []
    for name, (title, draw) in figures.items():
        file = f"eval-{name}.png"
        shown.append(Shown(file, title, draw(found, folder / file)))
    return shown


def _confusion(found: Evaluation, path: Path) -> str:
    names, counts = _classes(found)
    matrix = confusion(found.probabilities, found.labels)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    order = confusion_order(shares, counts)
    with drawing(path, confusion_height(len(order))) as (axis,):
        draw_confusion(axis, shares[np.ix_(order, order)], [names[i] for i in order], counts[order])
    part = f" The {len(order)} classes of the lowest accuracy." if len(names) > NAMED else ""
    return (
        "What a class is taken for (blue is right, orange is wrong), in percent of its test images, written from "
        f"{WRITTEN:.0%}; the largest classes come first.{part}"
    )


def _accuracy_by_count(found: Evaluation, path: Path) -> str:
    tested = [entry for entry in found.report["accuracy"]["per_class"] if entry["accuracy"] is not None]
    counts = np.array([entry["train_images"] for entry in tested], dtype=np.int64)
    recalls = np.array([entry["accuracy"] for entry in tested])
    with drawing(path, 4.2) as (axis,):
        for name, number in _GROUPS.items():
            own = groups(counts) == number
            if own.any():
                label = f"{name}: {own.sum()} of {len(tested)} classes, mean {recalls[own].mean():.1%}"
                axis.scatter(counts[own], recalls[own], s=24, color=GROUP_COLOURS[name], linewidth=0, label=label)
        lowest = np.argsort(recalls, kind="stable")[:NAMED_POINTS]
        for rank, index in enumerate(lowest[np.argsort(counts[lowest], kind="stable")]):
            # Neighbours of one accuracy would overwrite each other's names.
            offset = (5, 4 if rank % 2 else -10)
            place, name = (float(counts[index]), float(recalls[index])), short(tested[index]["label"])
            axis.annotate(name, place, offset, textcoords="offset points", fontsize=8, color=GREY)
        count_axis(axis, counts.astype(np.float64))
        axis.set(ylabel="test accuracy of a class", ylim=(-0.03, 1.03))
        percent(axis)
        axis.legend(loc="lower right")
    return (
        f"A point is a class (many: more than {MANY_OVER} training images, few: fewer than {FEW_UNDER}); "
        f"the {min(NAMED_POINTS, len(tested))} of the lowest accuracy have their names."
    )


def _reliability(found: Evaluation, path: Path) -> str:
    images = np.zeros(CALIBRATION_BINS, dtype=np.int64)
    confidence, accuracy = np.zeros(CALIBRATION_BINS), np.zeros(CALIBRATION_BINS)
    for item in found.report["reliability"]:
        index = int(np.clip(np.ceil(item["confidence"] * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1))
        images[index], confidence[index], accuracy[index] = item["images"], item["confidence"], item["accuracy"]
    with drawing(path, 4.2) as (axis,):
        draw_reliability(axis, images, confidence, accuracy, BLUE)
        axis.set_title(f"ECE {found.report['accuracy']['ece']:.3f}")
        axis.set_ylabel("share that is right")
    return (
        "How often an answer of some confidence is right; on the dashed line confidence can be taken at its word. "
        "The area of a dot is the share of images in its bin."
    )


def _latency(found: Evaluation, path: Path) -> str:
    with drawing(path, 4.0) as (axis,):
        for (name, times), colour in zip(found.latencies_ms.items(), LINES, strict=False):
            ordered = np.sort(times)
            longer = 1 - np.arange(len(ordered)) / len(ordered)
            axis.step(ordered, longer, where="post", color=colour, label=f"{name}: {len(ordered)} calls")
        for share in (0.5, 0.1, 0.01):
            axis.axhline(share, color=GREY, linewidth=0.8, linestyle=":")
        axis.set(xscale="log", yscale="log", xlabel="ms", ylabel="share that takes as long or longer")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3%}".rstrip("0%").rstrip(".") + "%"))
        axis.xaxis.set_major_formatter(FuncFormatter(_plain))
        axis.xaxis.set_minor_formatter(FuncFormatter(_first_digits))
        _legend_above(axis)
    return "Where a line crosses the dotted ones it has its median, its 90th and its 99th percentile."


def _throughput(found: Evaluation, path: Path) -> str:
    by_threads = found.report["by_threads"]
    lines = {f"onnx, threads: {threads}": part["throughput"] for threads, part in by_threads.items()}
    lines |= {name: part["throughput"] for name, part in found.report["against"].items()}
    with drawing(path, 3.8) as (axis,):
        for (name, rates), colour in zip(lines.items(), [*LINES, INK, GREY], strict=False):
            axis.plot([int(batch) for batch in rates], list(rates.values()), marker="o", color=colour, label=name)
        _doubling(axis, [int(batch) for batch in found.report["throughput"]])
        axis.set(xlabel="images in a batch", ylabel="images/s", ylim=(0, None))
        _legend_above(axis)
    return "Images per second by batch size and threads of one inference."


def _load(found: Evaluation, path: Path) -> str:
    report = found.report
    concurrencies = [int(concurrency) for concurrency in report["throughput"]]
    rates = list(report["throughput"].values())
    opened = report["http"]["open"]
    with drawing(path, 3.8, panels=2, share_y=False) as (left, right):
        left.plot(concurrencies, rates, marker="o", color=BLUE)
        left.set(xlabel="requests under way", ylabel="images/s", ylim=(0, None), title="closed loop")
        _doubling(left, concurrencies)
        for key, colour in (("p50", BLUE), ("p99", VERMILION)):
            times = [part["latency_ms"][key] for part in opened]
            right.plot([part["rate"] for part in opened], times, marker="o", color=colour, label=key)
        right.set(xlabel="requests/s sent", ylabel="ms", ylim=(0, None), xlim=(0, None), title="open loop")
        right.legend(loc="upper left")
    return "Left: so many requests are under way. Right: so many are sent a second, whether or not the server follows."


def _corruptions(found: Evaluation, path: Path) -> str:
    parts = found.report["corruptions"]["by_corruption"]
    clean = found.report["corruptions"]["clean"]
    shares = np.array([[clean, *part["top1"], part["mean"]] for part in parts.values()])
    with drawing(path, 4.4) as (axis,):
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        for (i, j), share in np.ndenumerate(shares):
            axis.text(
                j, i, f"{share:.1%}", ha="center", va="center", color="white" if share > 0.55 else INK, fontsize=9
            )
        axis.set_xticks(range(shares.shape[1]), ["none", *map(str, SEVERITIES), "mean"])
        axis.set_yticks(range(len(parts)), list(parts))
        axis.set(xlabel="severity")
        axis.tick_params(length=0)
        axis.grid(visible=False)
    return "Top-1 by corruption and severity; the mean is that of the five severities."


def _legend_above(axis: Axes) -> None:
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)


def _doubling(axis: Axes, values: list[int]) -> None:
    """Make the horizontal axis one on which doubling is a step, with a tick at each value."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(values, list(map(str, values)))
    axis.xaxis.set_minor_locator(NullLocator())


def _plain(value: float, _: object) -> str:
    return f"{value:g}"


def _first_digits(value: float, _: object) -> str:
    """Label 2 and 5 between the powers of ten."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _classes(found: Evaluation) -> tuple[list[str], npt.NDArray[np.int64]]:
    per_class = found.report["accuracy"]["per_class"]
    return [entry["label"] for entry in per_class], np.array([entry["train_images"] for entry in per_class])
