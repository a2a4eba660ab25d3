"""The loss that a planned learner really gets: by the counts of its own images, and the classes that a user names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tailstack.errors import UserError
from training import task
from training.dataset import TrainingData
from training.learner import Audience
from training.losses import LongTailLoss, class_weights, ldam_margins, log_prior, make_loss
from training.settings import FitSettings
from training.techniques import plan_learners

CLASSES = ["owl", "fox", "lynx"]
LABELS = np.repeat(np.arange(3), [12, 4, 2])


def losses(monkeypatch: pytest.MonkeyPatch, **values: Any) -> list[LongTailLoss]:
    """Return the loss of each learner of a technique, as it is handed to the training."""
    chosen = {"architectures": ["lcnet_035"], "pretrained": False, **values}
    settings = FitSettings(datastore=Path("d"), output=Path("o"), **chosen)
    pixels = np.zeros((len(LABELS), 8, 8, 3), np.uint8)
    data = TrainingData(pixels, LABELS, pixels[:0], LABELS[:0])
    found: list[LongTailLoss] = []
    monkeypatch.setattr(task, "train_learner", lambda *arguments: found.append(arguments[3]))
    for plan in plan_learners(settings, LABELS):
        task.train_task(task.Task(plan, Path("o")), data, CLASSES, settings, Audience(console=None))
    return found


def test_a_bag_counts_its_own_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two bags: six owls each, and all of the four foxes and two lynxes.
    for loss in losses(monkeypatch, technique="bagging-wl", threshold=6, loss="ins"):
        np.testing.assert_allclose(loss.weights / loss.weights[0], [1, 6 / 4, 6 / 2], rtol=1e-6)


def test_balanced_copies_count_as_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # At a threshold of four every class has about four: twelve owls are drawn, four foxes stay, two lynxes stand twice.
    (loss,) = losses(monkeypatch, technique="balanced", threshold=4, loss="ins")
    assert loss.weights[1] == pytest.approx(float(loss.weights[2]))


def test_a_users_weights_go_to_the_classes_of_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    (loss,) = losses(monkeypatch, technique="baseline", class_weights={"lynx": 3.5, "owl": 0.5})
    np.testing.assert_allclose(loss.weights / loss.weights[1], [0.5, 1, 3.5], rtol=1e-6)
    with pytest.raises(UserError, match=r"'linx'.*did you mean lynx"):
        losses(monkeypatch, technique="baseline", class_weights={"linx": 2.0})


@pytest.mark.parametrize(("epochs", "first"), [(10, 8), (5, 4), (2, 1), (1, 0)])
@pytest.mark.parametrize("technique", ["drw", "ldam"])
def test_weights_are_deferred_to_the_last_fifth(
    monkeypatch: pytest.MonkeyPatch, technique: str, epochs: int, first: int
) -> None:
    (loss,) = losses(monkeypatch, technique=technique, epochs=epochs)
    assert loss.weights_from == first


def test_each_learner_has_its_own_strength_of_adjustment(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = np.log(np.array([12, 4, 2]) / 18)
    architectures = ["lcnet_035", "mobilenetv3_small_050"]
    found = losses(monkeypatch, technique="tailstack", architectures=architectures, tau=[0.5, 2.0])
    for loss, tau in zip(found, (0.5, 2.0), strict=True):
        np.testing.assert_allclose(loss.offsets, tau * shares, rtol=1e-5)


COUNTS = st.lists(st.integers(1, 5000), min_size=2, max_size=20).map(np.array)


@given(COUNTS, st.sampled_from(["ins", "isns", "ens"]), st.floats(0, 0.9999))
def test_smaller_classes_never_weigh_less(counts: Any, name: Any, beta: float) -> None:
    weights = class_weights(name, counts, beta)
    assert weights is not None
    assert weights.mean() == pytest.approx(1, rel=1e-4)
    by_size = weights[np.argsort(counts)]
    assert (np.diff(by_size) <= 1e-6 * by_size[:-1]).all()


@given(COUNTS)
def test_beta_goes_from_equal_weights_to_inverse_counts(counts: Any) -> None:
    np.testing.assert_allclose(class_weights("ens", counts, 0.0), 1, rtol=1e-6)
    np.testing.assert_allclose(class_weights("ens", counts, 1 - 1e-9), class_weights("ins", counts, 0.0), rtol=1e-3)


@given(st.integers(1, 1000), st.integers(2, 10), st.floats(0, 3))
def test_equal_counts_leave_cross_entropy(count: int, classes: int, tau: float) -> None:
    counts = np.full(classes, count)
    logits = torch.randn(5, classes, generator=torch.Generator().manual_seed(count))
    labels = torch.arange(5) % classes
    plain = torch.nn.functional.cross_entropy(logits, labels)
    for name in ("ins", "isns", "ens", "logit_adjusted"):
        loss = make_loss(name, counts, None, beta=0.99, tau=tau, weights_from=0)
        torch.testing.assert_close(loss(logits, labels, 0), plain)


@given(COUNTS, st.floats(0, 3))
def test_adjustment_and_margins_grow_as_classes_shrink(counts: Any, tau: float) -> None:
    order = np.argsort(counts)
    assert (np.diff(log_prior(counts, tau)[order]) >= 0).all()
    margins = ldam_margins(counts)[order]
    assert (np.diff(margins) <= 0).all()
    assert margins[0] == pytest.approx(15, rel=1e-5)
