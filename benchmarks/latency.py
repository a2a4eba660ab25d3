"""How long inference takes: several systems in turns, so that what else the machine does falls on all of them."""

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from benchmarks.predictors import Predict, Probabilities
from tailstack.images import Pixels

WARM_UP = 3
"""Calls before each turn that aren't counted: caches are cold, and threads of the system before still spin."""
FEWEST = 3
"""Calls that a turn has at least."""


class Percentiles(TypedDict):
    """Milliseconds for one batch or one request, over the calls or the answers of all rounds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Timing:
    """Seconds of each call of one system at one batch size, by round."""

    batch: int
    rounds: list[list[float]]

    @property
    def calls(self) -> int:
        """Number of calls."""
        return sum(len(calls) for calls in self.rounds)

    def percentiles(self) -> Percentiles:
        """Return percentiles over all calls, in milliseconds."""
        return percentiles(np.concatenate(self.rounds) * 1e3)

    def rates(self) -> list[float]:
        """Return images per second of each round, one batch after the other."""
        return [self.batch * len(calls) / sum(calls) for calls in self.rounds]

    def images_per_second(self) -> float:
        """Return the median of `rates`."""
        return statistics.median(self.rates())

    def speed_over(self, other: "Timing") -> float:
        """Return how many times as fast as `other` this is: the median over rounds of the ratio of their rates.

        Not of their medians: where photos take turns, half of a cascade's calls say nothing of the other half.
        """
        return statistics.median(ours / theirs for ours, theirs in zip(self.rates(), other.rates(), strict=True))


def percentiles(milliseconds: npt.NDArray[np.float64]) -> Percentiles:
    """Return percentiles of milliseconds, of which there is one at least."""
    p50, p90, p99 = np.percentile(milliseconds, [50, 90, 99])
    return Percentiles(p50=float(p50), p90=float(p90), p99=float(p99))


def cycling(predict: Predict, photos: Pixels, batch: int) -> Predict:
    """Return what answers the next batch of `photos` at each call, whatever it is given.

    Not always the same batch: what a cascade costs depends on the photo.
    """
    starts = itertools.cycle(range(0, len(photos) - batch + 1, batch))

    def answer(_: Pixels) -> Probabilities:
        start = next(starts)
        return predict(photos[start : start + batch])

    return answer


def time_in_turns(
    systems: Mapping[str, Predict], images: Pixels, rounds: int, seconds: float
) -> Iterator[dict[str, Timing]]:
    """Time one batch in each system, one system after the other, round by round.

    Args:
        systems: what is measured, by name.
        images: one batch, uint8 `[batch, height, width, 3]`.
        rounds: turns of each system.
        seconds: length of a turn.

    Yields:
        After each round, the timings so far, by name.
    """
    timings = {name: Timing(len(images), []) for name in systems}
    for _ in range(rounds):
        for name, predict in systems.items():
            timings[name].rounds.append(_turn(predict, images, seconds))
        yield timings


def _turn(predict: Predict, images: Pixels, seconds: float) -> list[float]:
    for _ in range(WARM_UP):
        predict(images)
    calls: list[float] = []
    end = time.perf_counter() + seconds
    while len(calls) < FEWEST or time.perf_counter() < end:
        start = time.perf_counter()
        predict(images)
        calls.append(time.perf_counter() - start)
    return calls
