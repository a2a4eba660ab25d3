"""How long images wait for a server: a queue whose speed depends on how many images are inside.

Images come at random, independently of each other (a Poisson process). That holds for a server behind a Kubernetes
Service, whose replicas get a random share each: a random share of a Poisson process is one again, so each replica is a
queue of its own, and nothing is gained by having many.

What a server does with its cores, threads and batches is not modelled but measured: with `n` requests always under way
it answers so many a second, and with `n` images inside it is taken to do the same (the flow-equivalent server of
Chandy, Herzog and Woo, "Parametric analysis of queueing networks", IBM J. Res. Dev. 19, 1975). Times between answers
are taken to be exponential, which makes the number inside a birth-death process; images are answered in the order in
which they came.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import poisson

Floats = npt.NDArray[np.float64]
_NEGLIGIBLE = 1e-7
"""Share of the images that is left out."""


@dataclass(frozen=True)
class Replica:
    """One server."""

    rates: tuple[float, ...]
    """Images a second with 1, 2, ... images inside; with more than these, the last."""

    @classmethod
    def measured(cls, rates: Mapping[int, float]) -> "Replica":
        """Return the server that was measured with some numbers of images inside, 1 among them.

        Between two of them the rate is taken to be on the line between theirs; it never falls with more images.
        """
        inside = sorted(rates)
        between = np.interp(range(1, inside[-1] + 1), inside, [rates[number] for number in inside])
        return cls(tuple(float(rate) for rate in np.maximum.accumulate(between)))

    @property
    def rate(self) -> float:
        """Images a second at most."""
        return self.rates[-1]

    @property
    def latency(self) -> float:
        """Seconds that an image takes when none is before it."""
        return 1 / self.rates[0]

    def images_inside(self, load: float) -> float:
        """Return the mean number of images that wait or are worked on.

        Raises:
            ValueError: at so much the queue grows without end, or there is no load.
        """
        chances = self._chances(load)
        return float(np.arange(len(chances)) @ chances)

    def mean(self, load: float) -> float:
        """Return the mean seconds from an image's coming to its answer, at `load` images a second (Little's law).

        Raises:
            ValueError: at so much the queue grows without end, or there is no load.
        """
        return self.images_inside(load) / load

    def quantile(self, load: float, share: float) -> float:
        """Return the seconds from its coming to its answer within which a `share` of the images is answered.

        Raises:
            ValueError: at so much the queue grows without end, or there is no load.
        """
        inside, events = self._tagged(load), self.rate + load

        def left(seconds: float) -> float:
            jumps = np.arange(len(inside))
            return float(poisson.pmf(jumps, events * seconds) @ inside) - (1 - share)

        longest = len(inside) / events
        return float(brentq(left, 0, longest, xtol=1e-7))

    def _chances(self, load: float) -> Floats:
        """Return the chance of each number of images inside, up to where the rest is negligible."""
        use = load / self.rate
        if not 0 < use < 1:
            raise ValueError(f"a load of {load} images/s, of at most {self.rate}")
        tail = math.ceil(math.log(_NEGLIGIBLE) / math.log(use))
        steps = np.concatenate([load / np.array(self.rates), np.full(tail, use)])
        chances: Floats = np.cumprod(np.concatenate([[1.0], steps]))
        chances /= chances.sum()
        return chances

    def _tagged(self, load: float) -> Floats:
        """Follow an image from its coming; return how likely it is still inside after 0, 1, ... events.

        Its state is its place in the queue, and how many have come behind it: those behind it matter as long as they
        make the server faster. Events, comings and answers, are drawn at a constant rate, and some change nothing
        (uniformization), so that their number in a given time is Poisson's.
        """
        chances, most = self._chances(load), len(self.rates)
        behind = np.arange(most)
        speeds = np.array(self.rates)[np.minimum(np.arange(1, len(chances) + 1)[:, None] + behind, most) - 1]
        total = self.rate + load
        answered, idle = speeds / total, (self.rate - speeds) / total
        state = np.zeros_like(speeds)
        state[:, 0] = chances
        left = [1.0]
        # The last column stands for as many behind it, or more.
        while left[-1] > _NEGLIGIBLE:
            came = state * (load / total)
            after = state * idle
            after[:-1] += (state * answered)[1:]
            after[:, 1:] += came[:, :-1]
            after[:, -1] += came[:, -1]
            state = after
            left.append(float(state.sum()))
        return np.array(left)


def simulate(replica: Replica, load: float, images: int, seed: int) -> Floats:
    """Return the seconds that each of so many images takes, event by event: what `Replica` computes, drawn instead."""
    random = np.random.default_rng(seed)
    comings = np.cumsum(random.exponential(1 / load, images)).tolist()
    work = random.exponential(1, images).tolist()
    taken, now, came, answered = [], 0.0, 0, 0
    while answered < images:
        if came == answered:
            now = comings[came]
            came += 1
        rest = work[answered]
        # The first in the queue is done when its work is, at a rate that changes with each image that comes.
        while came < images:
            rate = replica.rates[min(came - answered, len(replica.rates)) - 1]
            if comings[came] >= now + rest / rate:
                break
            rest -= (comings[came] - now) * rate
            now = comings[came]
            came += 1
        now += rest / replica.rates[min(came - answered, len(replica.rates)) - 1]
        taken.append(now - comings[answered])
        answered += 1
    return np.array(taken)
