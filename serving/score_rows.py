"""What is written for an image: the columns of the Parquet parts, from a batch's probabilities and votes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serving.runtime import Answer
from tailstack.artifact import Artifact
from tailstack.errors import UserError

_CLASS = pa.struct([("label", pa.string()), ("probability", pa.float32())])
_VOTE = pa.struct([("learner", pa.string()), ("label", pa.string()), ("probability", pa.float32())])


class RowMaker:
    """Makes rows for one model.

    Args:
        artifact: the model's metadata.
        top_k: classes in the column of that name; all, if the model has fewer.
        coverage: of the prediction sets; None takes the smallest that the model has, if it has any.

    Raises:
        UserError: `top_k` makes no sense, or the model has no such coverage.
    """

    def __init__(self, artifact: Artifact, top_k: int, coverage: float | None) -> None:
        if top_k < 1:
            raise UserError(f"--top_k is {top_k}, and has to be 1 or more")
        self._sets = artifact.prediction_sets
        self.coverage = _coverage(artifact, coverage)
        self._top_k = min(top_k, len(artifact.classes))
        self._classes = pa.array(artifact.classes)
        self._learners = pa.array([card.name for card in artifact.learners])
        self._empty = self._columns(
            Answer(
                np.zeros((0, len(artifact.classes)), np.float32),
                np.zeros((0, len(artifact.learners), len(artifact.classes)), np.float32),
            )
        )

    def rows(self, uris: Sequence[str], answer: Answer | None, errors: Sequence[str | None]) -> pa.Table:
        """Return a row an image: `answer` has those without an error, in order; the others' columns are null."""
        found = self._columns(answer) if answer is not None else self._empty
        numbers = iter(range(len(uris)))
        places = pa.array([next(numbers) if error is None else None for error in errors], pa.int64())
        columns = {name: column.take(places) for name, column in found.items()}
        return pa.table({"uri": _texts(uris), **columns, "error": _texts(errors)})

    def _columns(self, answer: Answer) -> dict[str, Any]:
        order = np.argsort(-answer.probabilities, axis=1, kind="stable")
        best = order[:, : self._top_k]
        likely = np.take_along_axis(answer.probabilities, best, axis=1)
        columns = {
            "label": self._labels(best[:, 0]),
            "probability": pa.array(likely[:, 0]),
            "top_k": _lists(
                pa.StructArray.from_arrays([self._labels(best.ravel()), pa.array(likely.ravel())], fields=list(_CLASS)),
                np.full(len(best), best.shape[1]),
            ),
            "votes": self._votes(answer.votes),
        }
        if self._sets is not None and self.coverage is not None:
            inside = np.take_along_axis(self._sets.members(self.coverage, answer.probabilities), order, axis=1)
            columns["prediction_set"] = _lists(self._labels(order[inside]), inside.sum(axis=1))
        return columns

    def _votes(self, votes: npt.NDArray[np.float32]) -> Any:
        """Return each learner's most probable class, without those that a cascade didn't ask."""
        asked = votes.any(axis=2)
        choices = votes.argmax(axis=2)
        likely = np.take_along_axis(votes, choices[..., None], axis=2)[..., 0]
        learner = np.broadcast_to(np.arange(votes.shape[1]), asked.shape)
        values = [self._learners.take(pa.array(learner[asked])), self._labels(choices[asked]), pa.array(likely[asked])]
        return _lists(pa.StructArray.from_arrays(values, fields=list(_VOTE)), asked.sum(axis=1))

    def _labels(self, indices: npt.NDArray[np.int64]) -> Any:
        return self._classes.take(pa.array(indices))


def readable(text: str) -> str:
    """Return a file's name with a replacement character for what isn't UTF-8, which Parquet and JSON can't have."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _texts(values: Sequence[str | None]) -> Any:
    return pa.array([None if value is None else readable(value) for value in values], pa.string())


def _lists(values: Any, lengths: npt.NDArray[np.int64]) -> Any:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _coverage(artifact: Artifact, wanted: float | None) -> str | None:
    offered = list(artifact.prediction_sets.thresholds) if artifact.prediction_sets else []
    if wanted is None:
        return min(offered, key=float, default=None)
    for coverage in offered:
        if float(coverage) == wanted:
            return coverage
    choices = f"has to be one of {', '.join(offered)}" if offered else "this model has no prediction sets"
    raise UserError(f"--coverage is {wanted:g}: {choices}")
