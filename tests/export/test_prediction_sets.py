"""Prediction sets: thresholds on counts worked out by hand, and coverage on images that they were not chosen by."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from export.prediction_sets import COVERAGES, calibrate
from tailstack.artifact import PredictionSetCard
from tailstack.metrics import set_figures

MANY_IMAGES, FEW_IMAGES = 500, 5


def two_classes(true: list[float], labels: list[int]) -> np.ndarray:
    """Probabilities of two classes, in which the true one has the one that is given."""
    probabilities = np.empty((len(true), 2))
    rows = np.arange(len(true))
    probabilities[rows, labels] = true
    probabilities[rows, 1 - np.array(labels)] = 1 - np.array(true)
    return probabilities


def test_the_threshold_is_the_quantile_with_one_image_more() -> None:
    # Nine images and the one to come: 9 of 10 are reached by the ninth, more by none.
    true = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    card = calibrate(two_classes(true, [0] * 9), np.zeros(9, np.int64), np.array([MANY_IMAGES, MANY_IMAGES]))
    found = {coverage: thresholds[0] for coverage, thresholds in card.thresholds.items()}
    assert found == {"0.9": pytest.approx(0.1), "0.95": 0.0, "0.99": 0.0}
    assert card.images == 9


def test_ten_images_are_enough_for_a_threshold_of_their_own() -> None:
    labels = np.array([0] * 100 + [1] * 10)
    true = [0.9] * 100 + [0.5] * 9 + [0.2]
    card = calibrate(two_classes(true, labels.tolist()), labels, np.array([MANY_IMAGES, FEW_IMAGES]))
    assert card.thresholds["0.9"] == pytest.approx([0.9, 0.2])
    assert card.thresholds["0.95"][1] == pytest.approx(0.2)


def test_classes_of_a_group_count_the_same() -> None:
    # Of 40 images of class 0 all are at 0.9; of 10 of class 1 all are at 0.3. Each is half of what has to be covered.
    labels = np.array([0] * 40 + [1] * 10)
    card = calibrate(two_classes([0.9] * 40 + [0.3] * 10, labels.tolist()), labels, np.array([MANY_IMAGES] * 2))
    assert card.thresholds["0.9"] == pytest.approx([0.3, 0.3])


def test_groups_have_thresholds_of_their_own() -> None:
    labels = np.array([0] * 100 + [1] * 100)
    true = [0.9] * 100 + [0.2] * 100
    card = calibrate(two_classes(true, labels.tolist()), labels, np.array([MANY_IMAGES, FEW_IMAGES]))
    assert card.thresholds["0.9"] == pytest.approx([0.9, 0.2])


def test_a_group_with_too_few_images_is_careful() -> None:
    # 25 images of each of four classes at 0.9, and three of a rare one: all together reach 0.3 in 9 of 10 cases.
    labels = np.repeat(np.arange(5), [25, 25, 25, 25, 3])
    true = np.array([0.9] * 100 + [0.4, 0.3, 0.2])
    probabilities = np.repeat((1 - true)[:, None] / 4, 5, axis=1)
    probabilities[np.arange(103), labels] = true
    alike = calibrate(probabilities, labels, np.array([MANY_IMAGES] * 5))
    assert alike.thresholds["0.9"] == pytest.approx([0.3] * 5)
    rare = calibrate(probabilities, labels, np.array([MANY_IMAGES] * 4 + [FEW_IMAGES]))
    assert rare.thresholds["0.9"] == pytest.approx([0.9] * 4 + [0.2])
    none = calibrate(probabilities[:100], labels[:100], np.array([MANY_IMAGES] * 4 + [FEW_IMAGES]))
    assert none.thresholds["0.9"] == pytest.approx([0.9] * 5)


@given(st.integers(0, 2**32 - 1))
def test_a_larger_coverage_has_larger_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities, labels = softmax(rng.normal(0, 2, (60, 5)), axis=1), rng.integers(0, 5, 60)
    card = calibrate(probabilities, labels, np.array([400, 300, 90, 50, 10]))
    thresholds = [card.thresholds[f"{coverage:g}"] for coverage in COVERAGES]
    assert (np.diff(thresholds, axis=0) <= 0).all()


@given(st.integers(0, 2**32 - 1))
def test_sets_cover_what_they_state(seed: int) -> None:
    """Labels are drawn from the very probabilities: coverage of fresh images is the stated one, up to chance."""
    rng = np.random.default_rng(seed)
    probabilities = softmax(rng.normal(0, 2, (4000, 5)), axis=1)
    labels = (probabilities.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    counts = np.array([400, 300, 90, 50, 10])
    card = calibrate(probabilities[:2000], labels[:2000], counts)
    for coverage in COVERAGES:
        members = card.members(f"{coverage:g}", probabilities[2000:])
        # Eight deviations of 2,000 images in groups of a quarter: no seed is that unlucky.
        assert set_figures(members, labels[2000:], counts)["coverage"] > coverage - 0.08


def test_no_set_is_empty() -> None:
    card = PredictionSetCard(thresholds={"0.9": [0.95, 0.95, 0.95]}, images=10)
    assert card.members("0.9", np.array([[0.2, 0.5, 0.3]])).tolist() == [[False, True, False]]


def test_figures_of_sets() -> None:
    members = np.array([[True, False], [True, True], [False, True], [False, True]])
    figures = set_figures(members, np.array([0, 0, 1, 0]), np.array([MANY_IMAGES, FEW_IMAGES]))
    assert figures == {"coverage": 0.75, "size": 1.25, "many": pytest.approx(2 / 3), "medium": None, "few": 1.0}
