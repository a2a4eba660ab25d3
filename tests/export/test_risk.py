"""What images lose where a cascade stops, estimated as a curve over how sure its answer is."""

import numpy as np
import numpy.typing as npt
import pytest

from export.cascade import partial_means
from export.gate import DEVIATIONS, Judge
from export.risk import Curve, StopRisk
from tailstack.blend import Blend

IMAGES = 4000
THIRD = 1 / 3
HALVES = np.array([0.5, 1])
Floats = npt.NDArray[np.float64]


def planted(images: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Return confidences, and losses whose mean at each is 0.4 (1 - confidence)^1.5."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.2, 1, images)
    return confidence, 0.8 * (rng.uniform(size=images) < 0.5 * (1 - confidence) ** 1.5)


def two_learners(images: int, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return votes of two learners, and labels of ten classes that their mean is calibrated for."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (images, 1, 10)) + rng.normal(0, 1, (images, 2, 10))
    exponent = np.exp(1.5 * logits)
    votes = exponent / exponent.sum(axis=2, keepdims=True)
    labels = (votes.mean(axis=1).cumsum(axis=1) < rng.uniform(size=(images, 1))).sum(axis=1)
    return votes.astype(np.float32), np.minimum(labels, 9)


def judge_of(votes: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], max_drop: float = 0.5) -> Judge:
    plain = Blend((0.5, 0.5), 1.0).apply(votes)
    return Judge(plain, votes, labels, list("abcdefghij"), np.full(10, 200), max_drop)


def test_a_curve_finds_the_loss_by_confidence() -> None:
    confidence, lost = planted(IMAGES)
    curve = Curve.fit(confidence, lost, THIRD, 0.0)
    assert curve.lost == pytest.approx(0.4 * (1 - confidence) ** 1.5, abs=0.03)
    assert curve.lost.sum() == pytest.approx(lost.sum())


@pytest.mark.parametrize(("seen", "power"), [(0.0, 1), (1 / 3, 1.5), (0.5, 2), (2 / 3, 3), (0.8, 3), (1.0, 3)])
def test_the_more_have_voted_the_steeper_is_the_curve(seen: float, power: float) -> None:
    # 0.8 and 0.4 of doubt: twice as much doubt is 2^power as much loss, and both lose 0.3 together.
    curve = Curve.fit(np.array([0.2, 0.6]), np.array([0.3, 0.0]), seen, 0.0)
    assert curve.lost == pytest.approx([0.3 * 2**power / (2**power + 1), 0.3 / (2**power + 1)])


def test_a_curve_is_surer_with_more_images() -> None:
    few, many = (Curve.fit(*planted(images), THIRD, 0.0).relative_error for images in (IMAGES, 16 * IMAGES))
    assert few / many == pytest.approx(4, rel=0.2)


def test_a_curve_knows_how_unsure_it_is() -> None:
    curves = [Curve.fit(*planted(500, seed), THIRD, 0.0) for seed in range(200)]
    means = np.array([curve.lost.mean() for curve in curves])
    stated = np.mean([curve.relative_error for curve in curves])
    assert means.std() / means.mean() == pytest.approx(stated, rel=0.25)


@pytest.mark.parametrize("confidence", [np.full(50, 0.9), np.ones(50), np.linspace(0, 1, 50)])
def test_nothing_lost_is_no_risk_and_anything_else_can_be_fitted(confidence: Floats) -> None:
    nothing = Curve.fit(confidence, np.zeros(50), THIRD, 0.0)
    assert not nothing.lost.any()
    assert nothing.relative_error == 0
    for place in (7, -1):  # also the surest alone
        lost = np.zeros(50)
        lost[place] = 0.3
        curve = Curve.fit(confidence, lost, THIRD, 0.0)
        assert curve.lost.sum() == pytest.approx(0.3)
        assert np.isfinite(curve.relative_error)


@pytest.mark.parametrize(("events", "limit"), [(0, 2.30), (1, 3.89), (2, 5.32), (5, 9.27)])
def test_few_events_are_as_unsure_as_poissons_limit(events: int, limit: float) -> None:
    """Of 10,000 images as sure as each other, `events` lost 0.2: scipy.stats.chi2.ppf(0.9, 2 * events + 2) / 2."""
    lost = np.zeros(10_000)
    lost[:events] = 0.2
    curve = Curve.fit(np.full(10_000, 0.9), lost, THIRD, 0.2)
    assert curve.most.sum() * (1 + DEVIATIONS * curve.relative_error) / 0.2 == pytest.approx(limit, rel=0.03)


def test_a_few_images_that_lose_nothing_are_no_licence() -> None:
    votes = np.repeat(two_learners(20, seed=2)[0][:, :1], 2, axis=1)
    labels = votes[:, 0].argmax(axis=1)
    risk = StopRisk.fit(partial_means(votes, (0.5, 0.5), (0, 1)), HALVES, judge_of(votes, labels))
    assert risk.expected(np.full(20, 1)) == 0
    assert not risk.is_allowed(np.full(20, 1))
    assert risk.is_allowed(np.full(20, 2))


def test_where_all_are_asked_nothing_is_lost() -> None:
    votes, labels = two_learners(300, seed=0)
    risk = StopRisk.fit(partial_means(votes, (0.5, 0.5), (0, 1)), HALVES, judge_of(votes, labels))
    all_asked = np.full(300, 2)
    assert risk.expected(all_asked) == risk.bound(all_asked) == 0
    assert risk.is_allowed(all_asked)
    first_only = np.full(300, 1)
    assert 0 < risk.expected(first_only) < risk.bound(first_only)
    assert not risk.is_allowed(first_only)


def test_a_lucky_gap_is_no_licence() -> None:
    """Where those who stop happen to lose nothing, others as sure would."""
    votes, labels = two_learners(600, seed=1)
    judge = judge_of(votes, labels)
    means = partial_means(votes, (0.5, 0.5), (0, 1))
    lost = judge.lost(votes[:, 0])
    lucky = np.where((votes[:, 0].max(axis=1) > 0.5) & (lost == 0), 1, 2)
    answers = means[np.arange(600), lucky - 1]
    assert judge.expected_drop(answers) == 0
    assert StopRisk.fit(means, HALVES, judge).expected(lucky) > 0.3


def test_a_threshold_keeps_its_limit_on_images_that_it_was_not_chosen_by() -> None:
    others, other_labels = two_learners(20_000, seed=99)
    others_judge = judge_of(others, other_labels)
    lost = []
    for seed in range(30):
        votes, labels = two_learners(500, seed)
        risk = StopRisk.fit(partial_means(votes, (0.5, 0.5), (0, 1)), HALVES, judge_of(votes, labels))
        allowed = [level for level in np.linspace(1, 0.5, 101) if risk.is_allowed(_stops(votes, level))]
        answers = np.where((_stops(others, min(allowed)) == 1)[:, None], others[:, 0], others_judge.plain)
        lost.append(others_judge.expected_drop(answers))
    # 90% sure of 0.5 points, and not much surer.
    assert np.mean(np.array(lost) <= 0.5) >= 0.8
    assert np.mean(lost) > 0.25


def _stops(votes: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.int64]:
    """Return how many learners see each image."""
    return np.where(votes[:, 0].max(axis=1) >= threshold, 1, 2)
