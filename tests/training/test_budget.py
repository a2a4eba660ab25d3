"""One dial: what a budget of time buys, by the plan's own arithmetic."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tailstack.errors import UserError
from tailstack.network import architecture_config
from training.budget import (
    Measured,
    Plan,
    Speed,
    Wishes,
    Workload,
    choose,
    describe,
    effective_epochs,
    epochs_that_fit,
    fit_curves,
    load_table,
    next_epochs,
)
from training.duration import in_words, seconds_of
from training.settings import FitSettings, Loss

TABLE = load_table()
WORK = Workload(train=7868, val=1962, test=5000)


def speeds(factor: float = 1.0) -> dict[str, Speed]:
    """Return those of two cores, times a factor: 240 images a second at 64 pixels, 50 at 128."""
    return {
        f"tf_efficientnet_lite{k}": Speed((64, 128), (factor * (1 + k / 9) / 240, factor * (1 + k / 9) / 50))
        for k in range(3)
    }


def row(epochs: int, top1: float, **other: Any) -> Measured:
    return dataclasses.replace(Measured(("a",), 64, 0, epochs, "none", top1, "test"), **other)


def test_every_row_of_the_table_is_one_that_can_be_trained_and_says_where_it_is_from() -> None:
    assert len(TABLE) >= 8
    for entry in TABLE:
        for name in entry.architectures:
            architecture_config(name)
        assert entry.loss in Loss.__args__
        assert 0 < entry.top1 < 1
        assert entry.source


@pytest.mark.parametrize(("text", "seconds"), [("300s", 300), ("20m", 1200), ("2h", 7200), ("1.5 h", 5400)])
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "-5m", "0s", "20 minutes", "1e3s", "nan"])
def test_no_lengths_of_time(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="20m or 2h"):
        FitSettings(datastore=tmp_path, output=tmp_path, budget=text)


def test_lengths_of_time_in_words() -> None:
    assert [in_words(seconds) for seconds in (12.4, 150, 5400, 9000)] == ["12 s", "2 min", "90 min", "2.5 h"]


def test_speed_between_and_beyond_what_was_timed() -> None:
    speed = Speed((64, 128), (0.01, 0.04))
    assert [speed.at(64), speed.at(128)] == pytest.approx([0.01, 0.04])
    assert speed.at(32) == pytest.approx(0.0025)
    assert speed.at(256) == pytest.approx(0.16)


def test_the_error_falls_as_a_power_of_the_epochs_from_a_level_of_each_kinds_own() -> None:
    halves = [row(2, 0.6), row(8, 0.8)]  # the error halves where the epochs are four times as many
    small, large = fit_curves([*halves, row(4, 0.9, resolution=96)])
    assert small.power == large.power == pytest.approx(0.5)
    assert [small.top1(epochs) for epochs in (2, 8, 32)] == pytest.approx([0.6, 0.8, 0.9])
    assert [large.top1(epochs) for epochs in (4, 16)] == pytest.approx([0.9, 0.95])


@pytest.mark.parametrize("rows", [[row(4, 0.6)], [row(2, 0.6), row(2, 0.7)], [row(2, 0.8), row(8, 0.6)]])
def test_no_power_where_the_rows_tell_none(rows: list[Measured]) -> None:
    [curve] = fit_curves(rows)
    assert curve.power == 0
    assert curve.top1(100) == pytest.approx(1 - math.prod(1 - entry.top1 for entry in rows) ** (1 / len(rows)))


def test_an_epoch_at_fewer_pixels_counts_for_as_much_as_it_has_of_them() -> None:
    assert effective_epochs(8, 0, 96) == 8
    assert effective_epochs(3, 32, 64) == (48 / 64) ** 2 + 1 + (32 / 64) ** 2
    # What grew is no other curve: three epochs that count for less.
    [curve] = fit_curves([row(3, 0.6, grow_from=32), row(8, 0.8)])
    assert curve.top1(8) == pytest.approx(0.8)
    assert curve.top1(1.8125) == pytest.approx(0.6)
    assert curve.nearest(3.8).epochs == 3
    assert curve.nearest(3.9).epochs == 8


def test_the_tables_own_curves_are_near_its_rows() -> None:
    for curve in fit_curves(TABLE):
        for entry in curve.rows:
            found = curve.top1(effective_epochs(entry.epochs, entry.grow_from, entry.resolution))
            assert found == pytest.approx(entry.top1, abs=0.01)


def test_a_plan_by_hand() -> None:
    # 100 images at 0.1 s an epoch, 30 of validation after each, 60 at the end and 30 once more for a third of it.
    speed = {"a": Speed((32, 64), (0.025, 0.1))}
    plan = choose([row(8, 0.7)], speed, Workload(100, 30, 60), 100, Wishes(may_grow=False))
    assert (plan.architectures, plan.resolution, plan.epochs, plan.top1) == (("a",), 64, 8, 0.7)
    assert plan.seconds == pytest.approx([8 * 10 + 0.1 * (30 * 9 + 60) / 3])
    assert describe(plan) == "a at 64 pixels, 8 epochs"
    bags = choose([row(8, 0.7)], speed, Workload(100, 30, 60, bags=2), 200, Wishes(may_grow=False))
    assert (len(bags.seconds), bags.epochs) == (2, 8)


def affordable(seconds: float, factor: float, wishes: Wishes) -> Plan | None:
    try:
        return choose(TABLE, speeds(factor), WORK, seconds, wishes)
    except UserError:
        return None


WISHES = st.builds(
    Wishes,
    resolution=st.sampled_from([None, 48, 96]),
    grow_from=st.sampled_from([None, 0, 32]),
    epochs=st.sampled_from([None, 1, 7]),
    stacked=st.booleans(),
    may_grow=st.booleans(),
)


@given(st.floats(60, 36_000), st.floats(0.05, 5), WISHES)
def test_a_plan_fits_and_leaves_the_users_settings_alone(seconds: float, factor: float, wishes: Wishes) -> None:
    plan = affordable(seconds, factor, wishes)
    if plan is None:
        return
    assert sum(plan.seconds) <= seconds
    for name in ("resolution", "grow_from", "epochs"):
        assert getattr(wishes, name) in (None, getattr(plan, name))
    assert wishes.stacked or len(plan.architectures) == 1
    assert wishes.may_grow or wishes.grow_from or plan.grow_from == 0
    assert len(plan.seconds) == len(plan.architectures)
    measured = [entry.epochs for entry in TABLE if entry.architectures == plan.row.architectures]
    assert plan.epochs <= 3 * max(measured) or wishes.epochs


@examples(max_examples=40)
@given(st.floats(60, 36_000), st.floats(0.05, 5))
def test_the_budget_is_filled_where_the_table_reaches(seconds: float, factor: float) -> None:
    plan = affordable(seconds, factor, Wishes())
    if plan is not None and not plan.longest:
        # Of two or three epochs, one more is a large step.
        assert sum(plan.seconds) >= (0.9 if plan.epochs > 3 else 0.7) * seconds


@examples(max_examples=40)
@given(st.floats(60, 36_000), st.floats(1, 10))
def test_more_time_never_expects_less(seconds: float, times: float) -> None:
    less, more = affordable(seconds, 1, Wishes()), affordable(seconds * times, 1, Wishes())
    if less is not None:
        assert more is not None
        assert less.top1 is not None and more.top1 is not None
        assert more.top1 >= less.top1


def test_other_learners_than_the_tables_get_no_promise() -> None:
    wishes = Wishes(architectures=("resnet18",))
    plan = choose(TABLE, {"resnet18": Speed((64, 128), (1 / 240, 1 / 50))}, WORK, 1200, wishes)
    assert plan.architectures == ("resnet18",)
    assert plan.top1 is None


def test_a_budget_that_is_too_short_says_what_the_least_takes() -> None:
    least = r"too short: .*lite0 at 64 pixels, 2 epochs\) takes about 81 s on this machine, and 20 s are left for it"
    with pytest.raises(UserError, match=least):
        choose(TABLE, speeds(), WORK, 20, Wishes())


def test_the_epochs_of_the_next_learner_follow_the_time_that_is_left() -> None:
    assert next_epochs(8, [100, 100], slowness=1, left=200) == 8
    assert next_epochs(8, [100, 100], slowness=1, left=195) == 8  # a hair too little is no reason
    assert next_epochs(8, [100, 100], slowness=2, left=200) == 4
    assert next_epochs(8, [100], slowness=0.5, left=300) == 12
    assert next_epochs(8, [100], slowness=1, left=-5) == 1


@given(st.integers(1, 30), st.lists(st.floats(1, 1e4), min_size=1, max_size=4), st.floats(0.1, 10), st.floats(0, 1e5))
def test_the_next_learners_fit_unless_they_are_at_their_least(
    planned: int, expected: list[float], slowness: float, left: float
) -> None:
    epochs = next_epochs(planned, expected, slowness, left)
    assert 1 <= epochs <= 1.5 * planned + 1
    if epochs > 1:
        assert slowness * sum(expected) * (epochs - 0.2) / planned <= left * (1 + 1e-9)


def test_the_epochs_of_a_learner_follow_the_time_of_its_first() -> None:
    # 0.1 s an image at 64 pixels, 0.025 at 32: an epoch of 100 images and 30 of validation takes 11 s.
    speed = {"a": Speed((32, 64), (0.025, 0.1))}
    plan = choose([row(8, 0.7)], speed, Workload(100, 30, 60), 100, Wishes(may_grow=False))
    assert [epochs_that_fit(plan, 0, first, 88) for first in (11, 22, 5.5, 100)] == [8, 4, 12, 1]
    assert epochs_that_fit(plan, 0, 11, 83) == 8  # the nearer one, be it a little too long
    # Growing from 32 pixels, the first epoch is one of the cheapest.
    growing = choose([row(3, 0.7)], speed, Workload(100, 30, 60), 40, Wishes(grow_from=32, epochs=3))
    taken = sum(growing.seconds) - growing.final[0]
    assert taken == pytest.approx(3.5 + 100 * speed["a"].at(48) + 1 + 11)
    assert epochs_that_fit(growing, 0, 7, 2 * taken) == 3
    # Three times a row's epochs are as far as it is trusted.
    longest = choose([row(2, 0.7)], speed, Workload(100, 30, 60), 1000, Wishes(may_grow=False))
    assert (longest.epochs, epochs_that_fit(longest, 0, 1, 66)) == (6, 6)
