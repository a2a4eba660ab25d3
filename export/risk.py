"""What images lose where a cascade stops, as a curve over how sure its answer is.

Thresholds are chosen among many, by the images that validate: luck favours those under which just these images lose
nothing, and others would. So each stage's loss is a curve through all images that validate, also those that don't stop
there: whoever is barely sure enough is expected to lose what others as sure lose. Few lose anything, so the curve's
shape is given, and only its height is theirs. docs/export.md has what that is worth.
"""

from dataclasses import dataclass

import numpy as np

from export.cascade import Counts, Votes
from export.gate import DEVIATIONS, Floats, Judge

_SUREST = 1e-4
"""Doubt, of the confidence, below which the curve is level."""
_STEEPEST = 3.0


@dataclass(frozen=True)
class Curve:
    """The loss of one stage: a multiple of a power of 1 - confidence."""

    lost: Floats
    """By the curve, `[images]`."""
    most: Floats
    """The same, if one image more lost something, `[images]`."""
    relative_error: float
    """Standard error of the multiple that `most` has, as a share of it; it holds for any sum of `most`."""

    @classmethod
    def fit(cls, confidence: Floats, lost: Floats, seen: float, one_more: float) -> "Curve":
        """Fit the multiple, by which all images together lose what they did (Poisson's quasi-likelihood).

        That few images lose nothing is no proof that others don't. With one event more, mean and 1.28 standard errors
        are 2.3, 3.8 and 5.2 events where 0, 1 and 2 were seen: Poisson's limits at 90% are 2.3, 3.9 and 5.3.

        The power is 1 / (1 - seen), 3 at most: the more learners agree on being sure, the less those who are left can
        change. Fitted too, on 8,000 images that five ensembles weren't trained on, it was 1.8 to 2.3 where half of the
        weight has voted, and 1.0 to 1.6 and 3.0 to 3.4 where a third and two thirds have.

        Args:
            confidence: highest probability of each image, `[images]`.
            lost: what each image loses, `[images]`.
            seen: share of the weight of the learners that have voted.
            one_more: what one image more would lose.
        """
        power = 1 / max(1 - seen, 1 / _STEEPEST)
        shape = np.clip(1 - confidence, _SUREST, 1) ** power
        shares, total = shape / shape.sum(), float(lost.sum())
        most = total + one_more
        # Which doesn't trust that the variance is Poisson's.
        error = np.hypot(np.linalg.norm(lost - shares * total), one_more)
        return cls(shares * total, shares * most, float(error) / most if most else 0.0)


@dataclass(frozen=True)
class StopRisk:
    """The curves of all stages, and who judges what they say."""

    curves: tuple[Curve, ...]
    judge: Judge

    @classmethod
    def fit(cls, means: Votes, shares: Floats, judge: Judge) -> "StopRisk":
        """Fit a curve to the answers at each stage.

        Args:
            means: as `export.cascade.partial_means` returns them, `[images, stages, classes]`.
            shares: as `export.cascade.shares_seen` does, `[stages]`.
            judge: tells what an answer loses.
        """
        curves = (
            # Who is seen by all learners doesn't stop.
            Curve.fit(own.max(axis=1), judge.lost(own), seen, judge.one_more * (stage < len(shares)))
            for stage, (own, seen) in enumerate(zip(means.swapaxes(0, 1), shares, strict=True), 1)
        )
        return cls(tuple(curves), judge)

    def expected(self, used: Counts) -> float:
        """Return the points that are expected to be lost; `used` learners see each image, `[images]`."""
        return max(self._sum(used, weights) for weights in self.judge.mixes)

    def bound(self, used: Counts) -> float:
        """Return the points that are lost at most, with 90% confidence."""
        return max(self._bound(used, weights) for weights in self.judge.mixes)

    def is_allowed(self, used: Counts) -> bool:
        """Return whether what is lost stays within the judge's limits; of few-shot classes, what is expected to be."""
        few = self._sum(used, self.judge.by_few_shot_class)
        return self.bound(used) <= self.judge.max_drop and few <= self.judge.max_few_shot_drop

    def _sum(self, used: Counts, weights: Floats) -> float:
        """Return the weighted mean of what is lost, in points."""
        return 100 * float(sum(weights @ (curve.lost * (used == stage)) for stage, curve in enumerate(self.curves, 1)))

    def _bound(self, used: Counts, weights: Floats) -> float:
        """Return the weighted mean that is lost at most, by what is unsure about the curves, in points."""
        sums = [weights @ (curve.most * (used == stage)) for stage, curve in enumerate(self.curves, 1)]
        errors = [total * curve.relative_error for total, curve in zip(sums, self.curves, strict=True)]
        return 100 * float(np.sum(sums) + DEVIATIONS * np.linalg.norm(errors))
