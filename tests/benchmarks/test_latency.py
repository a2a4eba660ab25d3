"""Timing: turns, percentiles and ratios, on systems whose durations are known."""

import itertools

import numpy as np
import pytest

from benchmarks import latency
from benchmarks.latency import FEWEST, WARM_UP, Timing, cycling, time_in_turns
from benchmarks.predictors import Probabilities
from tailstack.images import Pixels

IMAGES = np.zeros((4, 2, 2, 3), np.uint8)


class Clock:
    """A clock that stands still, but for what the measured systems take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.log: list[str] = []
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now)

    def system(self, name: str, *seconds: float) -> latency.Predict:
        durations = itertools.cycle(seconds)

        def predict(images: Pixels) -> Probabilities:
            self.log.append(name)
            self.now += next(durations)
            return np.zeros((len(images), 2), np.float32)

        return predict


def test_systems_take_turns_and_warm_up_calls_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    systems = {"a": clock.system("a", 0.125), "b": clock.system("b", 0.25)}
    *_, timings = time_in_turns(systems, IMAGES, rounds=2, seconds=1.0)
    assert [name for name, _ in itertools.groupby(clock.log)] == ["a", "b", "a", "b"]
    assert timings["a"].rounds == [[0.125] * 8, [0.125] * 8]
    assert clock.log.count("a") == 2 * (8 + WARM_UP)
    assert timings["b"].calls == 8


def test_a_slow_system_is_called_a_few_times_nevertheless(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    *_, timings = time_in_turns({"slow": clock.system("slow", 60)}, IMAGES, rounds=1, seconds=1.0)
    assert timings["slow"].calls == FEWEST


def test_progress_is_told_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    turns = time_in_turns({"a": clock.system("a", 1)}, IMAGES, rounds=3, seconds=1.0)
    assert [len(timings["a"].rounds) for timings in turns] == [1, 2, 3]


def test_percentiles_are_milliseconds_over_all_rounds() -> None:
    seconds = np.arange(101) / 1000
    timing = Timing(1, [seconds[:50].tolist(), seconds[50:].tolist()])
    assert timing.percentiles() == pytest.approx({"p50": 50, "p90": 90, "p99": 99})


def test_images_per_second_counts_the_batch_and_forgives_one_bad_round() -> None:
    assert Timing(8, [[0.5, 0.5], [0.5], [9.0]]).images_per_second() == pytest.approx(16)


def test_photos_take_turns() -> None:
    photos = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    seen: list[list[int]] = []

    def predict(images: Pixels) -> Probabilities:
        seen.append(images[:, 0, 0, 0].tolist())
        return np.zeros((len(images), 2), np.float32)

    call = cycling(predict, photos, 2)
    for _ in range(3):
        call(photos[:2])
    assert seen == [[0, 1], [2, 3], [0, 1]]


def test_a_ratio_counts_every_call_of_a_round() -> None:
    # Of a cascade, most photos take one learner, and some all of three.
    cascade, plain = Timing(1, [[1.0, 1.0, 1.0, 3.0]]), Timing(1, [[3.0]])
    assert cascade.speed_over(plain) == pytest.approx(2)


def test_a_ratio_is_formed_within_rounds() -> None:
    # The machine was four times as slow in the second round, for both.
    ours, theirs = Timing(1, [[1.0], [4.0], [1.0]]), Timing(1, [[3.0], [12.0], [3.0]])
    assert ours.speed_over(theirs) == pytest.approx(3)
    assert theirs.speed_over(ours) == pytest.approx(1 / 3)
