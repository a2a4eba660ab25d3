"""Where a cascade's learners stop: thresholds that save the most and lose no more than allowed, on validation."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.cascade import Cascade, Counts, Votes, partial_means, shares_seen
from export.gate import Judge
from export.risk import StopRisk
from tailstack.blend import Blend

NEVER_SURE = 1.01
"""A threshold that no probability reaches: every image goes on to the next learner."""
_LEVELS = 64
_DIGITS = 4
_TINY_LOSS = 1e-6
"""Points: so that a step that loses nothing goes by what it saves."""
Steps = tuple[int, ...]
"""How far each stage's threshold is lowered, on its ladder."""


def choose_cascade(votes: Votes, blend: Blend, costs: Sequence[float], judge: Judge) -> Cascade | None:
    """Choose the order (by cost) and thresholds.

    It begins with every learner seeing every image, and lowers one threshold at a time by a small step: the one that
    saves the most for what may be lost by it, until no step is within the judge's limits. Then it raises one and lowers
    another as long as that saves more.

    Args:
        votes: the learners' probabilities of the images that validate, `[images, learners, classes]`.
        blend: how they become one answer.
        costs: of each learner, per image, in any unit.
        judge: what may be lost, on the same images.

    Returns:
        A cascade within the limits; None if even the answers of all learners together are not.
    """
    order = tuple(int(learner) for learner in np.argsort(costs, kind="stable"))
    means = partial_means(votes, blend.weights, order)
    confidences = means.max(axis=2)
    ladders = [_ladder(confidences[:, stage]) for stage in range(len(order) - 1)]
    risk = StopRisk.fit(means, shares_seen(blend.weights, order), judge)
    search = _Search(order, means, confidences, costs, blend, judge, risk, ladders)
    all_asked = (0,) * len(ladders)
    if not search.is_allowed(all_asked):
        return None
    steps = search.lowered(all_asked, range(len(ladders)))
    while cheaper := [trial for trial in search.exchanges(steps) if search.cost(trial) < search.cost(steps)]:
        steps = min(cheaper, key=search.cost)
    return search.cascade(steps)


@dataclass(frozen=True)
class _Search:
    order: tuple[int, ...]
    means: Votes
    """The answers of the first, the first two, … learners, before the temperature."""
    confidences: npt.NDArray[np.float32]
    """The highest of them, `[images, learners]`."""
    costs: Sequence[float]
    """Of each learner."""
    blend: Blend
    judge: Judge
    risk: StopRisk
    ladders: Sequence[list[float]]
    """Thresholds to try of each stage, falling."""

    def cascade(self, steps: Steps) -> Cascade:
        """Return the cascade with these thresholds."""
        thresholds = (ladder[step] for ladder, step in zip(self.ladders, steps, strict=True))
        return Cascade(self.order, tuple(thresholds))

    def cost(self, steps: Steps) -> float:
        """Return the mean cost of an image."""
        return self.cascade(steps).cost(self._used(steps), self.costs)

    def is_allowed(self, steps: Steps) -> bool:
        """Return whether what is lost by these thresholds is within the limits."""
        used = self._used(steps)
        return self.risk.is_allowed(used) and not self.judge.objections(self._answers(used), stops_judged=True)

    def lowered(self, steps: Steps, stages: Sequence[int]) -> Steps:
        """Lower the thresholds of `stages` as far as is allowed, first what saves the most for what it may lose."""
        while allowed := [trial for trial in self._next(steps, stages) if self.is_allowed(trial)]:
            steps = max(allowed, key=functools.partial(self._gain, steps))
        return steps

    def exchanges(self, steps: Steps) -> Iterator[Steps]:
        """Yield what comes of raising one threshold by a step, and lowering another one instead."""
        for raised, step in enumerate(steps):
            for other in range(len(steps)):
                if other != raised and step > 0:
                    yield self.lowered(_moved(steps, raised, -1), [other])

    def _next(self, steps: Steps, stages: Sequence[int]) -> Iterator[Steps]:
        for stage in stages:
            if steps[stage] < len(self.ladders[stage]) - 1:
                yield _moved(steps, stage, 1)

    def _gain(self, now: Steps, then: Steps) -> float:
        """Return the cost saved per point that may be lost."""
        lost = self.risk.bound(self._used(then)) - self.risk.bound(self._used(now))
        return (self.cost(now) - self.cost(then)) / (max(lost, 0.0) + _TINY_LOSS)

    def _used(self, steps: Steps) -> Counts:
        return self.cascade(steps).used_by(self.confidences)

    def _answers(self, used: Counts) -> npt.NDArray[np.float32]:
        return self.blend.tempered(self.means[np.arange(len(used)), used - 1])


def _moved(steps: Steps, stage: int, by: int) -> Steps:
    return tuple(step + by * (place == stage) for place, step in enumerate(steps))


def _ladder(confidence: npt.NDArray[np.float32]) -> list[float]:
    """Return thresholds to try, falling, at even shares of the images; between images, so that rounding moves none."""
    inner = np.quantile(confidence, np.linspace(1, 0, _LEVELS + 2)[1:-1]).round(_DIGITS)
    return [NEVER_SURE, *np.unique(inner)[::-1].tolist(), 0.0]
