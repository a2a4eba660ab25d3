"""Imbalance profiles, splits, class weights and the table of techniques, by numbers worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailstack.errors import UserError
from training.longtail import exponential_profile, imbalanced_subset, stratified_split
from training.losses import class_weights
from training.settings import FitSettings
from training.techniques import TECHNIQUES, plan_learners


def settings(**values: object) -> FitSettings:
    return FitSettings(datastore=Path("d"), output=Path("o"), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ratio", "last", "total"), [(1, 500, 25000), (0.1, 50, 9830), (0.02, 10, 6369), (0.005, 2, 4833)]
)
def test_the_profile_has_the_published_sizes(ratio: float, last: int, total: int) -> None:
    profile = exponential_profile(500, 50, ratio)
    assert (profile[0], profile[-1], profile.sum()) == (500, last, total)
    assert (np.diff(profile) <= 0).all()


def test_a_subset_is_drawn_by_the_seed_alone() -> None:
    labels = np.repeat(np.arange(5), 40)
    first = imbalanced_subset(labels, 5, 0.1, seed=3)
    assert np.bincount(labels[first]).tolist() == exponential_profile(40, 5, 0.1).tolist() == [40, 22, 12, 7, 4]
    assert first.tolist() == imbalanced_subset(labels, 5, 0.1, seed=3).tolist()
    assert first.tolist() != imbalanced_subset(labels, 5, 0.1, seed=4).tolist()


@given(st.lists(st.integers(2, 30), min_size=2, max_size=8), st.floats(0.01, 0.99), st.integers(0, 9))
def test_a_split_keeps_every_class_and_every_image_once(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    stay, held = stratified_split(labels, fraction, seed)
    assert sorted([*stay, *held]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        assert (labels[held] == label).sum() == min(round(count * fraction), count - 1)


def test_class_weights_by_hand() -> None:
    counts = np.array([100, 25, 4])
    assert class_weights("none", counts, 0.9) is None
    ins, isns, ens = (class_weights(name, counts, 0.5) for name in ("ins", "isns", "ens"))
    assert ins is not None and isns is not None and ens is not None
    np.testing.assert_allclose(ins / ins[0], [1, 4, 25], rtol=1e-5)
    np.testing.assert_allclose(isns / isns[0], [1, 2, 5], rtol=1e-5)
    # (1 - 0.5) / (1 - 0.5^n): 0.5 for the large ones, 0.5 / 0.9375 for n = 4.
    np.testing.assert_allclose(ens / ens[0], [1, 1, 1 / 0.9375], rtol=1e-5)
    for weights in (ins, isns, ens):
        assert weights.mean() == pytest.approx(1, abs=1e-6)
        assert weights.dtype == np.float32


LABELS = np.repeat(np.arange(3), [6, 3, 2])


@pytest.mark.parametrize(
    ("technique", "architectures", "losses"),
    [
        ("baseline", ["a"], ["none"]),
        ("stacking", ["a", "b", "c"], ["none"] * 3),
        ("stacking-wl", ["a", "b", "c"], ["ens"] * 3),
    ],
)
def test_the_learners_of_a_technique(technique: str, architectures: list[str], losses: list[str]) -> None:
    plans = plan_learners(settings(technique=technique, architectures=["a", "b", "c"], loss="ens", seed=2), LABELS)
    assert [plan.architecture for plan in plans] == architectures
    assert [plan.loss for plan in plans] == losses
    assert [plan.name for plan in plans] == [f"{k}-{name}" for k, name in enumerate(architectures)]
    assert len({plan.seed for plan in plans}) == len(plans)
    for plan in plans:
        assert plan.samples.tolist() == list(range(len(LABELS)))


def test_an_unknown_technique_is_answered_with_those_there_are() -> None:
    with pytest.raises(UserError) as error:
        plan_learners(settings(technique="magic"), LABELS)
    assert all(name in str(error.value) for name in TECHNIQUES)


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch_size", 0), ("architectures", []), ("val_fraction", 1.0), ("beta", 1.0), ("resolution", -1)],
)
def test_settings_that_no_run_can_have(name: str, value: object) -> None:
    with pytest.raises(UserError, match=name):
        settings(**{name: value})
