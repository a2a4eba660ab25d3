"""Imbalance profiles, splits, class weights and the table of techniques, by numbers worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from tailstack.errors import UserError
from training.longtail import bags, balanced_copies, exponential_profile, imbalanced_subset, stratified_split
from training.losses import LongTailLoss, class_weights, ldam_margins, make_loss
from training.schedule import first_layers, resolution_at
from training.settings import FitSettings, Loss
from training.techniques import TECHNIQUES, completed, plan_learners


def settings(**values: object) -> FitSettings:
    return FitSettings(datastore=Path("d"), output=Path("o"), **values)


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
EVERY = list(range(len(LABELS)))


@pytest.mark.parametrize(
    ("technique", "architectures", "loss"),
    [
        ("baseline", ["a"], "none"),
        ("weighted", ["a"], "isns"),
        ("stacking", ["a", "b", "c"], "none"),
        ("stacking-wl", ["a", "b", "c"], "isns"),
        ("logit-adjusted", ["a"], "logit_adjusted"),
        ("drw", ["a"], "ens"),
        ("ldam", ["a"], "ldam"),
        ("tailstack", ["a", "b", "c"], "logit_adjusted"),
    ],
)
def test_the_learners_of_a_technique_without_bags(technique: str, architectures: list[str], loss: str) -> None:
    plans = plan_learners(settings(technique=technique, architectures=["a", "b", "c"], seed=2), LABELS)
    assert [plan.architecture for plan in plans] == architectures
    assert {plan.recipe.loss for plan in plans} == {loss}
    assert [plan.name for plan in plans] == [f"{k}-{name}" for k, name in enumerate(architectures)]
    assert len({plan.seed for plan in plans}) == len(plans)
    assert all(plan.samples.tolist() == EVERY for plan in plans)


def test_every_technique_plans_and_its_settings_repeat_it() -> None:
    for name in TECHNIQUES:
        teacher = Path("t") if TECHNIQUES[name].taught else None
        chosen = settings(technique=name, architectures=["a", "b"], teacher=teacher)
        full = completed(chosen)
        assert completed(full) == full
        for plan, again in zip(plan_learners(chosen, LABELS), plan_learners(full, LABELS), strict=True):
            assert plan.samples.tolist() == again.samples.tolist()
            assert (plan.recipe.loss, plan.tau, plan.seed) == (again.recipe.loss, again.tau, again.seed)


def test_what_the_user_chooses_goes_over_the_recipe() -> None:
    chosen = settings(technique="stacking-wl", architectures=["a", "b", "c"], loss="ens", ema=0.5, tau=[1.0, 2.0])
    plans = plan_learners(chosen, LABELS)
    assert {(plan.recipe.loss, plan.recipe.ema) for plan in plans} == {("ens", 0.5)}
    assert [plan.tau for plan in plans] == [1.0, 2.0, 1.0]


def test_only_a_pretrained_body_learns_more_slowly_than_its_head() -> None:
    def body_lr(**values: object) -> float:
        (share,) = {plan.recipe.body_lr for plan in plan_learners(settings(**values), LABELS)}
        return share

    assert body_lr() == body_lr(technique="ldam") == 0.3
    assert body_lr(pretrained=False) == 1
    assert body_lr(pretrained=False, body_lr=0.1) == body_lr(body_lr=0.1) == 0.1


def test_balancing_copies_the_whole_part_and_draws_the_fraction() -> None:
    # Rates 4 / (6, 3, 2): 2/3, 4/3, 2.
    copies = np.bincount(balanced_copies(LABELS, 4, seed=0), minlength=len(LABELS))
    assert set(copies[LABELS == 0]) <= {0, 1}
    assert set(copies[LABELS == 1]) <= {1, 2}
    assert copies[LABELS == 2].tolist() == [2, 2]
    (plan,) = plan_learners(settings(technique="balanced", threshold=4), LABELS)
    assert np.bincount(plan.samples, minlength=len(LABELS)).tolist() == copies.tolist()
    assert balanced_copies(LABELS, 4, seed=0).tolist() != balanced_copies(LABELS, 4, seed=1).tolist()


@given(st.lists(st.integers(1, 200), min_size=2, max_size=8), st.integers(1, 300), st.integers(0, 9))
def test_balancing_gives_each_class_about_its_share(counts: list[int], threshold: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    chosen = balanced_copies(labels, threshold, seed)
    copies = np.bincount(chosen, minlength=len(labels))
    for label, count in enumerate(counts):
        low = threshold // count
        assert set(copies[labels == label]) <= {low, low + 1}
        assert copies[labels == label].sum() >= 1
        if threshold % count == 0:
            assert copies[labels == label].sum() == threshold


def test_bags_by_hand() -> None:
    # Classes of 12, 6, 3 and 2 images, whose median is 4.5: two bags of half of the first two and all of the others.
    labels = np.repeat(np.arange(4), [12, 6, 3, 2])
    first, second = bags(labels, 6, seed=0)
    for bag in (first, second):
        assert set(bag) >= set(range(18, 23))
        assert (labels[bag] < 2).sum() == 9
    assert sorted([*first[labels[first] < 2], *second[labels[second] < 2]]) == list(range(18))
    # By the threshold, the class of six images is in the minority too.
    (one, two) = bags(labels, 6, seed=0, by_median=False)
    assert set(one) & set(two) == set(range(12, 23))


@given(st.lists(st.integers(1, 60), min_size=2, max_size=8), st.integers(1, 30), st.booleans(), st.integers(0, 9))
def test_every_bag_has_the_minority_and_each_sample_of_the_majority_is_in_one(
    counts: list[int], threshold: int, by_median: bool, seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    if max(counts) < threshold:
        with pytest.raises(UserError, match="no bags"):
            bags(labels, threshold, seed, by_median=by_median)
        return
    parts = bags(labels, threshold, seed, by_median=by_median)
    assert len(parts) == max(counts) // threshold
    limit = np.median(counts) if by_median else threshold
    times = np.bincount(np.concatenate(parts), minlength=len(labels))
    for label, count in enumerate(counts):
        assert set(times[labels == label]) == {1 if count > limit else len(parts)}


def test_bagging_makes_a_learner_a_bag() -> None:
    plans = plan_learners(settings(technique="bagging-wl", architectures=["a", "b"], threshold=2), LABELS)
    assert [plan.architecture for plan in plans] == ["a"] * 3
    assert {plan.recipe.loss for plan in plans} == {"isns"}
    assert [len(plan.samples) for plan in plans] == [7, 7, 7]


COUNTS = np.array([100, 25, 4])


def loss_of(name: Loss, factors: list[float] | None = None, **values: float) -> LongTailLoss:
    chosen = {"beta": 0.5, "tau": 1.0, "weights_from": 0, **values}
    return make_loss(name, COUNTS, None if factors is None else np.array(factors, dtype=np.float32), **chosen)


LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.5, 0.0, 0.25]])
TRUE = torch.tensor([0, 2])


def test_logit_adjustment_is_cross_entropy_of_shifted_logits() -> None:
    shifted = LOGITS + 2 * torch.log(torch.tensor([100 / 129, 25 / 129, 4 / 129]))
    expected = torch.nn.functional.cross_entropy(shifted, TRUE)
    torch.testing.assert_close(loss_of("logit_adjusted", tau=2.0)(LOGITS, TRUE, 0), expected)


def test_ldam_takes_the_margin_from_the_true_class() -> None:
    # 100^-1/4, 25^-1/4, 4^-1/4, of which the largest becomes a margin of 0.5 between cosines, 15 between logits.
    margins = 15 * np.array([100.0, 25.0, 4.0]) ** -0.25 / 4.0**-0.25
    np.testing.assert_allclose(ldam_margins(COUNTS), margins, rtol=1e-6)
    moved = LOGITS - torch.tensor([[margins[0], 0, 0], [0, 0, margins[2]]])
    weights = torch.from_numpy(class_weights("ens", COUNTS, 0.5))
    expected = torch.nn.functional.cross_entropy(moved.float(), TRUE, weight=weights)
    torch.testing.assert_close(loss_of("ldam")(LOGITS, TRUE, 0), expected)


def test_deferred_weights_count_from_their_epoch_on() -> None:
    loss = loss_of("ins", weights_from=3)
    torch.testing.assert_close(loss(LOGITS, TRUE, 2), loss_of("none")(LOGITS, TRUE, 2))
    torch.testing.assert_close(loss(LOGITS, TRUE, 3), loss_of("ins")(LOGITS, TRUE, 0))
    assert loss(LOGITS, TRUE, 3) != loss(LOGITS, TRUE, 2)


def test_a_users_factors_multiply_the_weights_of_the_loss() -> None:
    alone, both = loss_of("none", [1, 1, 3.5]).weights, loss_of("ins", [1, 1, 3.5]).weights
    assert alone is not None and both is not None
    np.testing.assert_allclose(alone / alone[0], [1, 1, 3.5], rtol=1e-6)
    np.testing.assert_allclose(both / both[0], [1, 4, 25 * 3.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("epochs", "first", "expected"),
    [
        (6, 64, [64, 64, 80, 96, 96, 96]),
        (3, 48, [48, 64, 96]),
        (4, 0, [96] * 4),
        (4, 128, [96] * 4),
        (6, 8, [8, 32, 48, 80, 96, 96]),
        (3, 40, [40, 64, 96]),
    ],
)
def test_the_resolution_grows_and_is_full_for_the_last_third(epochs: int, first: int, expected: list[int]) -> None:
    assert [resolution_at(epoch, epochs, first, 96) for epoch in range(epochs)] == expected


@given(st.integers(1, 100), st.integers(1, 300), st.integers(1, 300))
def test_the_resolution_never_falls(epochs: int, first: int, last: int) -> None:
    grown = [resolution_at(epoch, epochs, first, last) for epoch in range(epochs)]
    assert grown == sorted(grown)
    assert grown[0] == min(first, last)
    assert max(grown) <= last


def test_the_first_layers_of_an_efficientnet_are_its_stem_and_two_stages() -> None:
    backbone = timm.create_model("tf_efficientnet_lite0")
    names = {name for layer in first_layers(backbone) for name, part in backbone.named_modules() if part is layer}
    assert {"conv_stem", "bn1"} <= names
    assert {name.rsplit(".", 2)[0].split(".")[1] for name in names if name.startswith("blocks")} == {"0", "1"}


def test_an_unknown_technique_is_answered_with_those_there_are() -> None:
    with pytest.raises(UserError) as error:
        completed(settings(technique="magic"))
    assert all(name in str(error.value) for name in TECHNIQUES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("architectures", []),
        ("val_fraction", 1.0),
        ("beta", 1.0),
        ("resolution", -1),
        ("threshold", 0),
        ("ema", 1.0),
        ("tau", []),
        ("class_weights", {"a": 0.0}),
    ],
)
def test_settings_that_no_run_can_have(name: str, value: object) -> None:
    with pytest.raises(UserError, match=name):
        settings(**{name: value})
