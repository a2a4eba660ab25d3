"""What a report says, in numbers: cells gathered by data set and technique, averaged over seeds, and the choice."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from training.cells import Cell
from training.techniques import TECHNIQUES

BASELINE = "baseline"
BALANCED_FROM = 0.95
"""Ratio from which a data set counts as balanced: copies of an image in both splits may have cost it a few."""
_VARIANT = "-imbalance-"

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Spread(NamedTuple):
    """A figure over seeds; None where there is none, and no standard deviation of one seed."""

    mean: float | None
    std: float | None


@dataclass(frozen=True)
class Series:
    """One technique on one data set: a cell a seed."""

    technique: str
    cells: tuple[Cell, ...]

    def spread(self, name: str) -> Spread:
        """Return mean and standard deviation of a figure of the test split."""
        return spread(cell.run.results.get(name) for cell in self.cells)

    @property
    def average_learner(self) -> Spread:
        """Top-1 of the average learner on the test split."""
        return spread(cell.run.average_learner.get("top1") for cell in self.cells)

    @property
    def parameters(self) -> int:
        """Parameters of all learners together."""
        return sum(learner.parameters for learner in self.cells[0].run.learners)

    @property
    def recall(self) -> Floats:
        """Test accuracy of each class, mean over seeds, `[classes]`; NaN where no test image is of that class."""
        rows = [[_number(item["accuracy"]) for item in cell.run.per_class] for cell in self.cells]
        return np.asarray(np.mean(np.array(rows, dtype=np.float64), axis=0))

    @property
    def confusion(self) -> Floats | None:
        """Share of each true class (row) taken for each class (column) over all seeds, `[classes, classes]`."""
        kept = [cell.run.confusion for cell in self.cells if cell.run.confusion is not None]
        if not kept:
            return None
        total = np.sum(np.array(kept, dtype=np.float64), axis=0)
        return np.asarray(total / np.maximum(total.sum(axis=1, keepdims=True), 1))


@dataclass(frozen=True)
class Group:
    """Everything that was measured on one data set."""

    datastore: str
    ratio: float
    label: str
    """Its ratio, with the data set's name where another has the same ratio."""
    series: dict[str, Series]
    """By technique, in the order of the table of techniques."""

    @property
    def cell(self) -> Cell:
        """One of the cells, for what all have in common: classes, counts, test images."""
        return next(iter(self.series.values())).cells[0]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Training images of each class, `[classes]`."""
        return np.array(self.cell.run.class_counts)

    @property
    def slug(self) -> str:
        """The label as a part of file names."""
        return "ratio-" + "".join(letter if letter.isalnum() or letter in ".-_" else "-" for letter in self.label)

    def improvement(self, technique: str) -> float | None:
        """Return mean top-1 of the technique minus the baseline's, or None if one of them wasn't measured here."""
        if technique not in self.series or BASELINE not in self.series:
            return None
        one, other = (self.series[name].spread("top1").mean for name in (technique, BASELINE))
        return None if one is None or other is None else one - other

    def featured(self, chosen: str | None) -> list[Series]:
        """Return the series that figures show: the baseline and the chosen technique, else the first there is."""
        names = [name for name in dict.fromkeys([BASELINE, chosen]) if name in self.series]
        return [self.series[name] for name in names if name] or [next(iter(self.series.values()))]


@dataclass(frozen=True)
class Choice:
    """The technique to ship, and what it was chosen by: balanced accuracy on validation, never the test split."""

    technique: str
    scores: dict[str, float]
    """Mean validation accuracy of each candidate, over the same data sets and seeds; the best first."""
    labels: list[str]
    """Data sets that were counted."""
    seeds: list[int]
    error: float | None
    """About the standard error of a score, from the number of validation images; None if that isn't known."""
    by_group: dict[str, str]
    """The best technique of each data set alone, by its label."""

    @property
    def close(self) -> list[str]:
        """Candidates that lie less than a standard error below the chosen one."""
        limit = self.scores[self.technique] - (self.error or 0)
        return [name for name, score in self.scores.items() if name != self.technique and score > limit]


def spread(values: Iterable[float | None]) -> Spread:
    """Return mean and (sample) standard deviation of what is known."""
    known = [value for value in values if value is not None]
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Spread(float(np.mean(known)) if known else None, std)


def ordered(techniques: Iterable[str]) -> list[str]:
    """Return techniques in the order of their table; those that it doesn't have any more come last."""
    known = list(TECHNIQUES)
    return sorted(set(techniques), key=lambda name: (known.index(name) if name in known else len(known), name))


def nominal_ratio(cell: Cell) -> float:
    """Return the imbalance ratio that was asked for.

    `prepare` names a variant for it; what the variant has may differ by a rounded image: 2 of 500 for 0.005.
    """
    _, found, asked = cell.datastore.rpartition(_VARIANT)
    try:
        return float(asked) if found else 1.0 if cell.ratio >= BALANCED_FROM else cell.ratio
    except ValueError:
        return cell.ratio


def gather(cells: Sequence[Cell]) -> list[Group]:
    """Sort cells by data set (falling ratio), technique and seed."""
    ratios = {cell.datastore: nominal_ratio(cell) for cell in cells}
    values = list(ratios.values())
    groups = []
    for datastore, ratio in sorted(ratios.items(), key=lambda item: (-item[1], item[0])):
        own = [cell for cell in cells if cell.datastore == datastore]
        label = f"{ratio:g}" if values.count(ratio) == 1 else f"{ratio:g} ({datastore})"
        series = {
            name: Series(name, tuple(sorted((c for c in own if c.technique == name), key=lambda cell: cell.seed)))
            for name in ordered(cell.technique for cell in own)
        }
        groups.append(Group(datastore, ratio, label, series))
    return groups


def choose(groups: Sequence[Group]) -> Choice | None:
    """Choose the technique of the highest balanced accuracy on validation; None if nothing was validated.

    Techniques are compared on the same data sets and seeds only: of all ways to leave out techniques that weren't run
    on every data set, or data sets on which not all were run, it is the one that keeps the most results.
    """
    blocks = _blocks(groups)
    if not blocks:
        return None
    shared = _most_results(blocks)
    used = {key: block for key, block in blocks.items() if shared <= set(block)}
    scores = _scores(used.values(), shared)
    errors = [validation_error(next(iter(block.values()))) for block in used.values()]
    known = [error for error in errors if error is not None]
    labels = [group.label for group in groups if any(label == group.label for label, _ in used)]
    by_group = {label: [block for (own, _), block in used.items() if own == label] for label in labels}
    return Choice(
        technique=next(iter(scores)),
        scores=scores,
        labels=labels,
        seeds=sorted({seed for _, seed in used}),
        error=math.sqrt(sum(error**2 for error in known)) / len(known) if len(known) == len(errors) else None,
        by_group={label: next(iter(_scores(kept, shared))) for label, kept in by_group.items()},
    )


def validated(groups: Sequence[Group]) -> set[str]:
    """Return the techniques that were measured on validation anywhere."""
    return {name for block in _blocks(groups).values() for name in block}


def unheard(cell: Cell) -> int:
    """Return how many classes have training images, but none that validates."""
    return int((_held_out(cell) == 0).sum())


def _held_out(cell: Cell) -> Indices:
    """Return the images that validate, of each class that has training images; empty where that isn't known."""
    if cell.run.validation_counts is not None:
        return np.array(cell.run.validation_counts)[np.array(cell.run.class_counts) > 0]
    fraction = cell.run.config.get("val_fraction")
    if fraction is None or "val" in cell.run.datastore:
        return np.empty(0, np.int64)
    counts = [count for count in cell.run.class_counts if count > 0]
    return np.array([min(round(count * fraction), count - 1) for count in counts], np.int64)


def validation_error(cell: Cell) -> float | None:
    """Return about the standard error of a cell's balanced validation accuracy; None where that can't be told.

    Binomial, with the number of images of each class that validate: of runs of earlier versions, as
    `stratified_split` has it.
    """
    held = _held_out(cell)
    held = held[held > 0]
    if not len(held):
        return None
    rate = cell.run.validation["balanced"]
    return float(np.sqrt(np.sum(rate * (1 - rate) / held)) / len(held))


def mistakes(matrix: Floats, label: int, most: int = 2) -> list[tuple[int, float]]:
    """Return the classes that `label` is most often taken for, and the share of its images that is."""
    row = matrix[label].copy()
    row[label] = 0
    return [(int(i), float(row[i])) for i in np.argsort(-row, kind="stable")[:most] if row[i] > 0]


def _blocks(groups: Sequence[Group]) -> dict[tuple[str, int], dict[str, Cell]]:
    """Return the validated cells of each data set and seed, by technique."""
    blocks: dict[tuple[str, int], dict[str, Cell]] = {}
    for group in groups:
        for series in group.series.values():
            for cell in series.cells:
                if cell.run.validation.get("balanced") is not None:
                    blocks.setdefault((group.label, cell.seed), {})[series.technique] = cell
    return blocks


def _most_results(blocks: Mapping[tuple[str, int], Collection[str]]) -> frozenset[str]:
    """Return the techniques that, times the data sets of which a seed has them all, are the most."""
    sets: dict[str, set[frozenset[str]]] = {}
    shared = {frozenset[str]()}
    for (label, _), names in blocks.items():
        sets.setdefault(label, set()).add(frozenset(names))
        shared |= {frozenset(names)} | {other & frozenset(names) for other in shared}

    def results(names: frozenset[str]) -> int:
        return len(names) * sum(any(names <= own for own in of_label) for of_label in sets.values())

    return max(shared, key=lambda names: (len(names) > 1, results(names), len(names)))


def _scores(blocks: Iterable[dict[str, Cell]], techniques: Iterable[str]) -> dict[str, float]:
    kept = list(blocks)
    means = {
        name: float(np.mean([block[name].run.validation["balanced"] for block in kept])) for name in ordered(techniques)
    }
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
