"""Where a cascade's learners stop: thresholds that save the most and lose no more than allowed, on validation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.cascade import Blend, Cascade, Votes, partial_means
from export.gate import Judge

NEVER_SURE = 1.01
"""A threshold that no probability reaches: every image goes on to the next learner."""
_LEVELS = 64
_DIGITS = 4
_TINY_LOSS = 1e-6
"""Points: so that a step that loses nothing goes by what it saves."""


def choose_cascade(votes: Votes, blend: Blend, costs: Sequence[float], judge: Judge) -> Cascade:
    """Choose the order (by cost) and thresholds.

    It begins with every learner seeing every image, and lowers one threshold at a time by a small step: the one that
    saves the most for what the ensemble expects to lose by it, until no step is within the judge's limits.

    Args:
        votes: the learners' probabilities of the images that validate, `[images, learners, classes]`.
        blend: how they become one answer.
        costs: of each learner, per image, in any unit.
        judge: what may be lost, on the same images.

    Returns:
        A cascade without objections, unless the answers of all learners together have some.
    """
    order = tuple(int(learner) for learner in np.argsort(costs, kind="stable"))
    means = partial_means(votes, blend.weights, order)
    search = _Search(order, means, costs, blend, judge)
    ladders = [_ladder(means[:, stage].max(axis=1)) for stage in range(len(order) - 1)]
    steps = [0] * len(ladders)
    open_stages = set(range(len(ladders)))
    while open_stages:
        found = {}
        for stage in sorted(open_stages):
            trial = [step + (other == stage) for other, step in enumerate(steps)]
            gain = search.gain(_thresholds(ladders, steps), _thresholds(ladders, trial))
            if gain is None:
                open_stages.discard(stage)
            else:
                found[stage] = gain
        if found:
            best = max(found, key=lambda stage: found[stage])
            steps[best] += 1
            if steps[best] == len(ladders[best]) - 1:
                open_stages.discard(best)
    return Cascade(order, _thresholds(ladders, steps))


@dataclass(frozen=True)
class _Search:
    order: tuple[int, ...]
    means: Votes
    """The answers of the first, the first two, … learners, before the temperature."""
    costs: Sequence[float]
    """Of each learner."""
    blend: Blend
    judge: Judge

    def gain(self, now: tuple[float, ...], then: tuple[float, ...]) -> float | None:
        """Return the cost saved per point of expected loss, or None if `then` is past a limit."""
        before, after = (self._answers(thresholds) for thresholds in (now, then))
        if self.judge.objections(after):
            return None
        saved = self._cost(now) - self._cost(then)
        lost = self.judge.expected_drop(after) - self.judge.expected_drop(before)
        return saved / (max(lost, 0.0) + _TINY_LOSS)

    def _answers(self, thresholds: tuple[float, ...]) -> npt.NDArray[np.float32]:
        used = Cascade(self.order, thresholds).used(self.means)
        return self.blend.tempered(self.means[np.arange(len(used)), used - 1])

    def _cost(self, thresholds: tuple[float, ...]) -> float:
        cascade = Cascade(self.order, thresholds)
        return cascade.cost(cascade.used(self.means), self.costs)


def _ladder(confidence: npt.NDArray[np.float32]) -> list[float]:
    """Return thresholds to try, falling, at even shares of the images; between images, so that rounding moves none."""
    inner = np.quantile(confidence, np.linspace(1, 0, _LEVELS + 2)[1:-1]).round(_DIGITS)
    return [NEVER_SURE, *np.unique(inner)[::-1].tolist(), 0.0]


def _thresholds(ladders: list[list[float]], steps: list[int]) -> tuple[float, ...]:
    return tuple(ladder[step] for ladder, step in zip(ladders, steps, strict=True))
