"""What more images would buy: the curve over classes, and what the page says of it."""

from typing import Any

import numpy as np
import pytest

from tests.training.synthetic import cell
from training.cells import Cell
from training.report_data import gather
from training.report_fit import fit_counts
from training.report_page import more_images


def with_accuracies(accuracies: Any) -> Cell:
    one = cell(50, 0.005, "baseline", 0, test_images=100)
    for item, accuracy in zip(one.run.per_class, accuracies, strict=True):
        item["accuracy"] = float(accuracy)
    return one


def test_what_more_images_buy_is_read_off_the_classes() -> None:
    counts = np.array(cell(50, 0.005, "baseline", 0).run.class_counts)

    def curve(images: Any) -> Any:
        return 1 / (1 + np.exp(1.5 - 0.5 * np.log2(images)))

    (group,) = gather([with_accuracies(curve(counts))])
    fit = fit_counts(group, group.series["baseline"])
    assert fit
    assert fit.supported
    gain, low, high = fit.doubling(20)
    assert gain == pytest.approx(curve(40) - curve(20), abs=0.01)
    assert low < gain < high
    text = more_images(group, group.series["baseline"])
    assert f"a class with 20 images: about +{100 * (curve(40) - curve(20)):.0f} points" in text
    assert "a class with 500 images" not in text  # the data have no class of 1,000


def test_what_more_images_buy_where_classes_are_large() -> None:
    one = cell(50, 0.1, "baseline", 0, test_images=100)
    one.run.class_counts = [int(count) for count in np.geomspace(10_000, 1000, 50)]
    for item, count in zip(one.run.per_class, one.run.class_counts, strict=True):
        item["accuracy"] = float(1 / (1 + np.exp(5.5 - 0.5 * np.log2(count))))
    (group,) = gather([one])
    fit = fit_counts(group, group.series["baseline"])
    assert fit
    # Not exactly: half a hit and half a miss more are counted in each class.
    assert fit.coefficients == pytest.approx([-5.5, 0.5], rel=0.02)
    assert "a class with 5000 images: about +" in more_images(group, group.series["baseline"])


def test_what_doubling_buys_is_asked_somewhere_between_the_smallest_class_and_the_largest() -> None:
    one = cell(50, 0.1, "baseline", 0, test_images=100)
    one.run.class_counts = [int(count) for count in np.geomspace(96, 21, 50)]
    for item, count in zip(one.run.per_class, one.run.class_counts, strict=True):
        item["accuracy"] = float(1 / (1 + np.exp(5.5 - np.log2(count))))
    (group,) = gather([one])
    assert "a class with 21 images: about +" in more_images(group, group.series["baseline"])


@pytest.mark.parametrize("slope", [0.0, -0.03])
def test_nothing_is_promised_where_counts_explain_nothing(slope: float) -> None:
    counts = np.array(cell(50, 0.005, "baseline", 0).run.class_counts)
    noise = np.random.default_rng(0).uniform(-0.2, 0.2, 50)
    (group,) = gather([with_accuracies(0.6 + slope * np.log2(counts) + noise)])
    text = more_images(group, group.series["baseline"])
    assert "nothing can be said: the accuracy of a class doesn't clearly rise" in text
    assert "about +" not in text
