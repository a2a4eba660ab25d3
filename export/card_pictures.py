"""The pictures of a model card, of the images that validate."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.card import beside
from tailstack.figures import BLUE, GROUP_COLOURS, VERMILION, drawing, percent
from tailstack.metrics import (
    CALIBRATION_BINS,
    ClassFigures,
    Labels,
    Probabilities,
    Weights,
    expected_calibration_error,
    groups,
    reliability,
)
from tailstack.plots import count_axis, draw_reliability

HEIGHT = 3.6


def draw_pictures(
    model: Path,
    before: Probabilities,
    after: Probabilities,
    labels: Labels,
    weights: Weights,
    per_class: Sequence[ClassFigures],
) -> list[Path]:
    """Draw how sure and how right the answers are, and which classes are right how often.

    Args:
        model: the file that the pictures go with.
        before: the plain average of the learners that saw an image, `[images, classes]`.
        after: what the file answers, `[images, classes]`.
        labels: `[images]`.
        weights: what each image counts, `[images]`.
        per_class: figures of `after`.

    Returns:
        The two files, as `export.card.write_card` takes them.
    """
    paths = [beside(model, "reliability.png"), beside(model, "classes.png")]
    with drawing(paths[0], HEIGHT, panels=2) as panels:
        for panel, title, answers, colour in zip(
            panels, ("plain average", "this file"), (before, after), (VERMILION, BLUE), strict=True
        ):
            draw_reliability(panel, *_bins(answers, labels, weights), colour)
            error = expected_calibration_error(answers, labels, weights=weights)
            panel.set_title(f"{title}: ECE {error:.4f}")
        panels[0].set_ylabel("share that is right")
    _draw_classes(paths[1], [item for item in per_class if item["accuracy"] is not None])
    return paths


def _draw_classes(path: Path, per_class: Sequence[ClassFigures]) -> None:
    counts = np.array([item["train_images"] for item in per_class])
    accuracy = np.array([item["accuracy"] for item in per_class])
    group = groups(counts)
    with drawing(path, HEIGHT) as (panel,):
        for number, (name, colour) in enumerate(GROUP_COLOURS.items()):
            inside = group == number
            panel.scatter(counts[inside], accuracy[inside], s=36, color=colour, label=name, clip_on=False)
        count_axis(panel, counts.astype(np.float64))
        panel.set(ylabel="accuracy of the class", ylim=(0, 1))
        percent(panel)
        panel.legend()


def _bins(
    answers: Probabilities, labels: Labels, weights: Weights
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return images, mean confidence and accuracy of every bin, each `[bins]`, as `draw_reliability` takes them."""
    images = np.zeros(CALIBRATION_BINS, np.int64)
    confidence, accuracy = np.zeros((2, CALIBRATION_BINS))
    for item in reliability(answers, labels, weights=weights):
        place = int(np.clip(np.ceil(item["confidence"] * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1))
        images[place], confidence[place], accuracy[place] = item["images"], item["confidence"], item["accuracy"]
    return images, confidence, accuracy
