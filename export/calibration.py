"""The last temperature of what a file answers, fitted on the images that validate once its graph stands.

`fit` may fit a temperature to the average of all learners, but can't know a cascade. There most images are answered by
the first learner alone, which is surer of itself than right, and others by an average, which is not: one temperature
can't mend both. So each number of learners that saw an image has one (temperature scaling: Guo et al., ICML 2017).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, helper, numpy_helper
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from export.cascade import Votes
from tailstack.artifact import LEARNERS_USED, PROBABILITIES
from tailstack.blend import tempered
from tailstack.metrics import Labels, Probabilities, class_balanced, expected_calibration_error
from tailstack.prior import TINY

_FOLDS = 5
_LOG_RANGE = (-1.5, 1.5)
"""Of the logarithm of a temperature."""
_RAW = "calibration/raw"
"""The answers before."""
_USED = "calibration/used"
"""How many learners saw an image."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """Temperatures of the answers of a graph.

    Args:
        temperatures: one for each number of learners that saw an image, 1 to all; or a single one for every image.
    """

    temperatures: tuple[float, ...]

    def apply(self, answers: npt.NDArray[np.float32], votes: Votes) -> npt.NDArray[np.float32]:
        """Return calibrated answers, `[images, classes]`.

        Args:
            answers: the graph's before, `[images, classes]`.
            votes: the learners', with zeros where one didn't see an image, `[images, learners, classes]`.
        """
        if self._changes_nothing:
            return answers
        return tempered(answers, np.array(self.temperatures)[_stages(votes, len(self.temperatures))])

    def append_to(self, model: ModelProto) -> None:
        """Make a graph answer what `apply` returns."""
        if self._changes_nothing:
            return
        by_stage = len(self.temperatures) > 1
        # OpenVINO gives rubbish for an output that other nodes read too.
        inner = {PROBABILITIES: _RAW, **({LEARNERS_USED: _USED} if by_stage else {})}
        for node in model.graph.node:
            node.output[:] = [inner.get(name, name) for name in node.output]
        temperatures = _constant(model, "temperatures", np.array(self.temperatures, np.float32)[:, None])
        above_zero = _add(model, "Max", _RAW, _constant(model, "tiny", TINY))
        if by_stage:
            _add(model, "Identity", _USED, output=LEARNERS_USED)
            stage = _add(model, "Sub", _USED, _constant(model, "one", np.int64(1)))
            temperatures = _add(model, "Gather", temperatures, stage)
        divided = _add(model, "Div", _add(model, "Log", above_zero), temperatures)
        _add(model, "Softmax", divided, output=PROBABILITIES, axis=1)

    @property
    def _changes_nothing(self) -> bool:
        return set(self.temperatures) == {1.0}


NONE = Calibration((1.0,))
"""Leaves answers as they are."""


def fit_calibration(
    answers: Probabilities, votes: Votes, labels: Labels, stages: int, mix: Sequence[float] | None = None
) -> Calibration:
    """Fit temperatures, and keep what helps.

    Each class counts by its share of the mix that the answers are right for, however many images of it validate. Where
    classes count the same, most images are of large classes, for which a cascade's first learner is as right as it is
    sure, and would outvote the small ones, for which it isn't; where they don't, an ensemble that rightly expects few
    images of a class would seem too sure of the others. Help is a lower
    negative log-likelihood on images that a temperature was not fitted on, over folds, and in the end a lower
    calibration error; else it is 1.

    Args:
        answers: the graph's, `[images, classes]`.
        votes: the learners', `[images, learners, classes]`.
        labels: `[images]`.
        stages: numbers of learners that are told apart: all learners of a cascade, or 1.
        mix: share of each class, `[classes]`; None counts all the same.
    """
    logarithms = np.log(np.maximum(answers.astype(np.float64), TINY))
    importance = class_balanced(labels, mix)
    own = _stages(votes, stages)
    parts = [_Part(logarithms[own == k], labels[own == k], importance[own == k]) for k in range(stages)]
    calibration = Calibration(tuple(part.helpful() for part in parts))
    after = calibration.apply(np.asarray(answers, np.float32), votes)
    before, then = (expected_calibration_error(values, labels, weights=importance) for values in (answers, after))
    return calibration if then < before else Calibration((1.0,) * stages)


@dataclass(frozen=True)
class _Part:
    """The images that one number of learners saw: logarithms of their probabilities, labels, and weights."""

    logarithms: Floats
    labels: Labels
    importance: Floats

    def helpful(self) -> float:
        """Return a temperature that helps, or 1."""
        count = len(self.labels)
        if count < 2 * _FOLDS:
            return 1.0
        fold = np.random.default_rng(0).permutation(count) % _FOLDS
        loss = sum(self._subset(fold == k).loss(self._subset(fold != k).fitted()) for k in range(_FOLDS))
        return self.fitted() if loss < self.loss(1.0) else 1.0

    def fitted(self) -> float:
        """Return the temperature of the least loss."""
        found = minimize_scalar(lambda value: self.loss(np.exp(value)), bounds=_LOG_RANGE, method="bounded")
        return float(np.exp(found.x))

    def loss(self, temperature: float) -> float:
        """Return the negative log-likelihood, summed with each image's weight."""
        rows = log_softmax(self.logarithms / temperature, axis=1)
        return float(-(self.importance * rows[np.arange(len(rows)), self.labels]).sum())

    def _subset(self, chosen: npt.NDArray[np.bool_]) -> "_Part":
        return _Part(self.logarithms[chosen], self.labels[chosen], self.importance[chosen])


def _stages(votes: Votes, stages: int) -> npt.NDArray[np.int64]:
    """Return each image's place in the temperatures, `[images]`."""
    if stages == 1:
        return np.zeros(len(votes), np.int64)
    return np.asarray(votes.any(axis=2).sum(axis=1) - 1, np.int64)


def _add(model: ModelProto, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
    """Append a node, and return the name of its output."""
    output = output or f"calibration/{operator.lower()}"
    node = helper.make_node(operator, list(inputs), [output], name=f"calibration/{operator.lower()}_node", **attributes)
    model.graph.node.append(node)
    return output


def _constant(model: ModelProto, name: str, value: npt.NDArray[Any] | np.generic) -> str:
    """Append a constant, and return its name."""
    name = f"calibration/{name}"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name
