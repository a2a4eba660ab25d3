"""How sure the ensemble may be where a learner disagrees with it."""

import numpy as np
import pytest

from export.disputes import dispute_temperature, sharpened
from export.gate import Judge

IMAGES = 20
EVEN = np.array([[0.5, 0.5]] * IMAGES, np.float32)
PLAIN = np.array([[0.8, 0.2]] * IMAGES, np.float32)
VOTES = np.stack([PLAIN, PLAIN[:, ::-1]], axis=1)
"""The second learner always disagrees."""


def labels(right: int) -> np.ndarray:
    """Return labels of which the ensemble, which says 0, is right about so many."""
    return np.array([0] * right + [1] * (IMAGES - right))


def test_the_temperature_makes_the_odds_those_of_being_right() -> None:
    # It says 4 to 1, and is right 16 times to 1 where it has been asked 17 times: 4^(1 / T) = 16.
    rows = slice(3, None)
    assert dispute_temperature(PLAIN[rows], VOTES[rows], labels(19)[rows]) == pytest.approx(0.5, rel=1e-3)
    # Right 12 times of 20 it is too sure: no reason to allow more. Nor is silence.
    assert dispute_temperature(PLAIN, VOTES, labels(12)) == pytest.approx(1, abs=1e-3)
    assert dispute_temperature(PLAIN, VOTES[:, :1], labels(20)) == 1


def test_disputes_that_both_lose_say_nothing() -> None:
    three = np.concatenate([PLAIN * 0.9, EVEN[:, :1] * 0.2], axis=1)
    votes = np.stack([three, three[:, [1, 0, 2]]], axis=1)
    assert dispute_temperature(three, votes, np.full(IMAGES, 2)) == 1


def test_a_loss_is_the_difference_of_both_classes_in_the_sharpened_ensemble() -> None:
    truth = labels(19)[3:]
    plain, votes = PLAIN[3:], VOTES[3:]
    # 4 to 1 becomes 16 to 1.
    assert sharpened(plain, votes, truth) == pytest.approx(np.array([[16, 1]] * 17) / 17, rel=1e-3)
    judge = Judge(plain, votes, truth, ["a", "b"], np.array([200, 200]), max_drop=0.3)
    assert judge.lost(votes[:, 1]) == pytest.approx(15 / 17, rel=1e-3)
    assert not judge.lost(votes[:, 0]).any()
