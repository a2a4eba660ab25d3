"""Weights and a temperature of the ensemble: kept only where they help on images that they were not fitted on."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tailstack.blend import Blend
from tailstack.metrics import negative_log_likelihood
from training.blending import fit_blend, plain_average

Array = npt.NDArray[np.float32]


def votes_of(quality: list[float], labels: npt.NDArray[np.int64], sharpness: float = 1.0, seed: int = 0) -> Array:
    """Return softmax outputs `[images, learners, 4]` of learners whose evidence for the true class differs."""
    rng = np.random.default_rng(seed)
    truth = np.eye(4)[labels][:, None] * np.array(quality)[None, :, None]
    logits = truth + rng.normal(size=(len(labels), len(quality), 4))
    return torch.softmax(torch.from_numpy(sharpness * logits), dim=2).float().numpy()


LABELS = np.random.default_rng(1).integers(0, 4, 600)


def test_a_learner_that_knows_nothing_loses_its_share() -> None:
    votes, held_out = (votes_of([2.5, 0.0], LABELS, seed=seed) for seed in (0, 1))
    blend = fit_blend(votes, LABELS)
    assert blend.weights[0] > 0.9
    assert sum(blend.weights) == pytest.approx(1)
    plain = plain_average(2).apply(held_out)
    assert negative_log_likelihood(blend.apply(held_out), LABELS) < negative_log_likelihood(plain, LABELS)


def test_too_sharp_learners_get_a_temperature_above_one() -> None:
    blend = fit_blend(votes_of([1.0, 1.0], LABELS, sharpness=4.0), LABELS)
    assert blend.temperature > 1.5


def test_of_too_many_votes_some_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    votes = votes_of([2.5, 0.0], LABELS)
    whole = fit_blend(votes, LABELS)
    monkeypatch.setattr("training.blending._MOST", votes.size // 2)
    part = fit_blend(votes, LABELS)
    assert part != whole
    np.testing.assert_allclose(part.weights, whole.weights, atol=0.05)


def test_what_does_not_help_is_not_kept() -> None:
    labels = LABELS[:8]
    assert fit_blend(votes_of([2.0, 2.0], labels), labels) == plain_average(2)
    # Equal answers: no weights can help, and the temperature is right as it is.
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet(np.ones(4), 500).astype(np.float32)
    drawn = np.array([rng.choice(4, p=row / row.sum()) for row in probabilities.astype(np.float64)])
    assert fit_blend(np.stack([probabilities] * 2, axis=1), drawn) == plain_average(2)


def test_a_blend_is_a_distribution_and_keeps_the_best_class() -> None:
    votes = votes_of([1.0, 2.0], LABELS)
    plain, blended = plain_average(2).apply(votes), Blend((0.5, 0.5), 2.0).apply(votes)
    np.testing.assert_allclose(blended.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(blended.argmax(axis=1), plain.argmax(axis=1))


def test_a_blend_by_hand() -> None:
    votes = np.array([[[0.8, 0.2], [0.4, 0.6]]])
    # The mean, three to one, is 0.7 and 0.3; at a temperature of 0.5 its odds are squared: 49 to 9.
    np.testing.assert_allclose(Blend((0.75, 0.25)).apply(votes), [[0.7, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(Blend((0.75, 0.25), 0.5).apply(votes), [[49 / 58, 9 / 58]], rtol=1e-6)
    np.testing.assert_allclose(plain_average(2).apply(votes), [[0.6, 0.4]], rtol=1e-6)
