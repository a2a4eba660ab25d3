"""What a budget of time buys: speeds + time + size of the data -> architectures, resolution and epochs.

The choice is made from `measured.csv`, our own results. Rows of the same learners at the same resolution are points of
one curve: the error falls as a power of the epochs, which all curves share, from a level of each one's own. An epoch
at fewer pixels counts for as much as it has of them. No curve is followed far beyond what was measured.
"""

import csv
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tailstack.errors import UserError
from training.duration import in_words
from training.schedule import resolution_at

TABLE = Path(__file__).with_name("measured.csv")
FILL = 0.97
"""Share of the budget that is planned for: the rest is for what no plan foresees."""
_SHORTEST, _LONGEST = 0.25, 3
"""Epochs that a curve is trusted with: of the fewest and of the most that it was measured with."""
_LEAST = 2
"""Epochs: nothing shorter was measured, and warm-up and decay share what there is."""
FORWARD = 1 / 3
"""Time of looking at an image, as a share of learning from it: backward takes twice as long as forward."""


@dataclass(frozen=True)
class Measured:
    """One row of the table: the learners of one run, and what it reached."""

    architectures: tuple[str, ...]
    resolution: int
    grow_from: int
    epochs: int
    loss: str
    top1: float
    source: str


@dataclass(frozen=True)
class Speed:
    """Seconds that a learner takes for each image of a training step, at two resolutions in pixels."""

    resolutions: tuple[int, int]
    seconds: tuple[float, float]

    def at(self, resolution: int) -> float:
        """Return the seconds an image at any resolution, along the power law through the two."""
        (small, large), (fast, slow) = self.resolutions, self.seconds
        power = math.log(slow / fast) / math.log(large / small)
        return float(fast * (resolution / small) ** power)


@dataclass(frozen=True)
class Workload:
    """Images that a learner trains on in an epoch, and that it is validated and tested on; learners an architecture."""

    train: int
    val: int
    test: int
    bags: int = 1


@dataclass(frozen=True)
class Wishes:
    """What the user has set, which no plan changes; None is left to the plan."""

    architectures: tuple[str, ...] | None = None
    resolution: int | None = None
    grow_from: int | None = None
    epochs: int | None = None
    stacked: bool = True
    """Whether the technique takes more than one architecture."""
    may_grow: bool = True


@dataclass(frozen=True)
class Plan:
    """What to train, and what to expect of it."""

    architectures: tuple[str, ...]
    resolution: int
    grow_from: int
    epochs: int
    seconds: tuple[float, ...]
    """Expected time of each learner, its validation and its test included."""
    final: tuple[float, ...]
    """What of it is spent at the end, when all learners are trained: on looking at the held-out images once more."""
    row: Measured
    """The row of the table that it is nearest to."""
    top1: float | None
    """Expected on data like the table's; None where the table has no such learners at this resolution."""
    longest: bool
    """It is as long as a row is trusted to be stretched."""
    speeds: tuple[Speed, ...]
    """Of each learner, as it was timed."""
    work: Workload


def load_table(path: Path = TABLE) -> list[Measured]:
    """Read the measured rows."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Measured(
                architectures=tuple(row["architectures"].split()),
                resolution=int(row["resolution"]),
                grow_from=int(row["grow_from"]),
                epochs=int(row["epochs"]),
                loss=row["loss"],
                top1=float(row["top1"]),
                source=row["source"],
            )
            for row in csv.DictReader(file)
        ]


def effective_epochs(epochs: int, grow_from: int, resolution: int) -> float:
    """Return how many epochs at full resolution have as many pixels; `grow_from` is 0 where it doesn't grow."""
    steps = np.array([resolution_at(epoch, epochs, grow_from, resolution) for epoch in range(epochs)])
    return float(((steps / resolution) ** 2).sum())


@dataclass(frozen=True)
class Curve:
    """How the error of some learners at one resolution falls with their epochs."""

    rows: tuple[Measured, ...]
    level: float
    """Error after one epoch."""
    power: float

    def top1(self, effective: float) -> float:
        """Return what to expect after so many effective epochs."""
        return 1 - self.level * math.pow(effective, -self.power)

    def nearest(self, effective: float) -> Measured:
        """Return the row that was trained for the most similar number of effective epochs."""
        return min(self.rows, key=lambda row: abs(math.log(_effective(row) / effective)))


def fit_curves(rows: Sequence[Measured]) -> list[Curve]:
    """Fit a curve to each kind of row, by least squares of the error's logarithm.

    The power is 0 where the rows don't tell it, or say that the error rises.
    """
    kinds = [tuple(members) for _, members in itertools.groupby(sorted(rows, key=_kind), key=_kind)]
    points = [(np.log(list(map(_effective, kind))), np.log([1 - row.top1 for row in kind])) for kind in kinds]
    slope = -sum(float(((x - x.mean()) * (y - y.mean())).sum()) for x, y in points)
    spread = sum(float(((x - x.mean()) ** 2).sum()) for x, _ in points)
    power = max(slope / spread, 0.0) if spread else 0.0
    return [
        Curve(kind, math.exp(float((y + power * x).mean())), power) for kind, (x, y) in zip(kinds, points, strict=True)
    ]


def choose(
    rows: Sequence[Measured], speeds: Mapping[str, Speed], work: Workload, seconds: float, wishes: Wishes
) -> Plan:
    """Return the plan of the highest expected accuracy that takes no longer than `seconds`.

    Args:
        rows: the table.
        speeds: of each architecture that a row or the user names.
        work: sizes of the data.
        seconds: for training, validation and the final test, of all learners together.
        wishes: the user's own settings.

    Raises:
        UserError: nothing can be trained in so short a time; the message says what the least takes.
    """
    plans = [
        plan
        for curve in fit_curves(rows)
        if wishes.stacked or len(curve.rows[0].architectures) == 1 or wishes.architectures
        for plan in _candidates(curve, speeds, work, wishes)
    ]
    fitting = [(top1, plan) for top1, plan in plans if sum(plan.seconds) <= seconds]
    if not fitting:
        _, least = min(plans, key=lambda item: sum(item[1].seconds))
        raise UserError(
            f"--budget is too short: the least that is worth training ({describe(least)}) takes about "
            f"{in_words(sum(least.seconds))} on this machine, and {in_words(max(seconds, 0))} are left for it"
        )
    return max(fitting, key=lambda item: (round(item[0], 6), sum(item[1].seconds)))[1]


def describe(plan: Plan) -> str:
    """Say what a plan trains."""
    names = ", ".join(plan.architectures)
    growing = f", growing from {plan.grow_from}" if plan.grow_from else ""
    return f"{names} at {plan.resolution} pixels{growing}, {plan.epochs} epoch{'s' * (plan.epochs > 1)}"


def next_epochs(planned: int, expected: Sequence[float], slowness: float, left: float) -> int:
    """Return the epochs of the next learner, so that it and those after it fit into the time that is left.

    Args:
        planned: its epochs.
        expected: seconds that it and each learner after it were expected to take.
        slowness: seconds that were taken so far, as a multiple of those expected.
        left: seconds to the end of the budget.
    """
    share = left / (slowness * sum(expected))
    # Not longer by more than half: a machine that was busy for a moment must not decide about the length of a run.
    return max(1, int(planned * min(share, 1.5) + 0.2))


def epochs_that_fit(plan: Plan, place: int, first_epoch: float, seconds: float) -> int:
    """Return the epochs of a learner whose first one is done, so that all of them come nearest to taking `seconds`.

    Args:
        plan: with how fast the learner was expected to be.
        place: the learner's, among those of the plan.
        first_epoch: seconds that its first epoch took.
        seconds: for all its epochs.
    """

    def expected(epochs: int) -> list[float]:
        return _epochs_seconds(plan.speeds[place], plan.resolution, plan.grow_from, epochs, plan.work)

    slowness = first_epoch / expected(plan.epochs)[0]
    # One epoch is too little to make a run much longer by, and no row is trusted further than the plan was.
    most = min(round(1.5 * plan.epochs), max(plan.epochs, _LONGEST * plan.row.epochs))
    return min(range(1, most + 1), key=lambda epochs: abs(first_epoch + slowness * sum(expected(epochs)[1:]) - seconds))


def _kind(row: Measured) -> tuple[tuple[str, ...], int, str]:
    return row.architectures, row.resolution, row.loss


def _effective(row: Measured) -> float:
    return effective_epochs(row.epochs, row.grow_from, row.resolution)


def _candidates(
    curve: Curve, speeds: Mapping[str, Speed], work: Workload, wishes: Wishes
) -> Iterator[tuple[float, Plan]]:
    """Yield each way to follow a curve, with the accuracy by which ways are compared."""
    measured = curve.rows[0]
    architectures = wishes.architectures or measured.architectures
    resolution = wishes.resolution or measured.resolution
    known = architectures == measured.architectures and resolution == measured.resolution
    final = tuple(_final(speeds[name], resolution, work) for name in architectures for _ in range(work.bags))
    lengths = [row.epochs for row in curve.rows]
    lowest, highest = max(_LEAST, math.ceil(_SHORTEST * min(lengths))), _LONGEST * max(lengths)
    for epochs in [wishes.epochs] if wishes.epochs else range(lowest, highest + 1):
        for first in _first_resolutions(resolution, wishes):
            effective = effective_epochs(epochs, first, resolution)
            if effective < lowest and not wishes.epochs:
                continue
            top1 = curve.top1(effective)
            plan = Plan(
                architectures,
                resolution,
                first,
                epochs,
                _seconds(architectures, resolution, first, epochs, speeds, work),
                final,
                curve.nearest(effective),
                round(top1, 3) if known else None,
                epochs == highest and not first,
                tuple(speeds[name] for name in architectures for _ in range(work.bags)),
                work,
            )
            yield top1, plan


def _first_resolutions(resolution: int, wishes: Wishes) -> list[int]:
    if wishes.grow_from is not None:
        return [wishes.grow_from]
    if not wishes.may_grow:
        return [0]
    return [0, *range(math.ceil(resolution / 32) * 16, resolution, 16)]


def _seconds(
    architectures: Sequence[str],
    resolution: int,
    first: int,
    epochs: int,
    speeds: Mapping[str, Speed],
    work: Workload,
) -> tuple[float, ...]:
    return tuple(
        sum(_epochs_seconds(speeds[name], resolution, first, epochs, work)) + _final(speeds[name], resolution, work)
        for name in architectures
        for _ in range(work.bags)
    )


def _epochs_seconds(speed: Speed, resolution: int, first: int, epochs: int, work: Workload) -> list[float]:
    """Return the seconds of each epoch of a learner, its validation included."""
    validation = FORWARD * work.val * speed.at(resolution)
    steps = [resolution_at(epoch, epochs, first, resolution) for epoch in range(epochs)]
    return [work.train * speed.at(step) + validation for step in steps]


def _final(speed: Speed, resolution: int, work: Workload) -> float:
    return FORWARD * (work.val + work.test) * speed.at(resolution)
