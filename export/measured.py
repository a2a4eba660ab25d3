"""What a graph answers on the images that validate, and what of a file's metadata follows from that."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.calibration import Calibration, fit_calibration
from export.card_pictures import draw_pictures
from export.cascade import Votes
from export.cheaper import CheaperGraph
from export.gate import headline
from export.prediction_sets import calibrate
from export.validation import NothingValidatesError, file_answers, held_out, run_splits
from tailstack.artifact import CalibrationCard, ValidationCard
from tailstack.datastore import Datastore
from tailstack.metrics import ClassFigures, Labels, Weights, class_balanced, evaluate, expected_calibration_error
from tailstack.run import RunRecord


@dataclass(frozen=True)
class Measured:
    """Answers on the images that validate."""

    record: RunRecord
    indices: list[int] | None
    """Which images of train.json these are; None where they are val.json's."""
    labels: Labels
    answers: npt.NDArray[np.float32]
    """What the finished file gives, `[images, classes]`."""
    votes: Votes
    calibration: Calibration
    """What the finished file has, and the graph that was asked hadn't yet."""

    @property
    def average(self) -> npt.NDArray[np.float32]:
        """The plain average of the learners that saw an image, `[images, classes]`."""
        seen = self.votes.any(axis=2).sum(axis=1, keepdims=True)
        return np.asarray(self.votes.sum(axis=1) / seen, np.float32)

    @property
    def weights(self) -> Weights:
        """Of images, by which each class counts as in the mix that the answers are right for, `[images]`."""
        return class_balanced(self.labels, self.record.prior)

    def metadata(self, path: Path, cheaper: CheaperGraph | None) -> dict[str, Any]:
        """Return the fields of `tailstack.artifact.Artifact` that are decided by these answers.

        Args:
            path: the file.
            cheaper: what it is, if it isn't the plain graph.

        Raises:
            UserError: it loses more accuracy than it may.
        """
        found = cheaper.metadata(path, self.answers, self.votes) if cheaper else {}
        temperatures = [self.record.temperature * factor for factor in self.calibration.temperatures]
        if found.get("cascade"):
            found["cascade"] = found["cascade"].model_copy(update={"temperatures": temperatures})
        before, after = (
            expected_calibration_error(values, self.labels, weights=self.weights)
            for values in (self.average, self.answers)
        )
        counts = np.array(self.record.class_counts)
        return {
            **found,
            "temperature": temperatures[-1],
            "validation": ValidationCard(
                split="val" if self.indices is None else "train",
                indices=self.indices,
                figures=headline(self.answers, self.labels, self.record.classes, counts),
            ),
            "calibration": CalibrationCard(ece_before=before, ece_after=after),
            "prediction_sets": calibrate(self.answers, self.labels, counts),
        }

    def drawn(self, model: Path) -> tuple[Sequence[ClassFigures], Sequence[Path]]:
        """Draw the pictures of a file's card, and return its classes' figures and the pictures."""
        accuracy = evaluate(self.answers, self.labels, self.record.classes, np.array(self.record.class_counts))
        per_class = accuracy["per_class"]
        return per_class, draw_pictures(model, self.average, self.answers, self.labels, self.weights, per_class)


def measure(
    path: Path, run: Path, record: RunRecord, store: Datastore, cheaper: CheaperGraph | None
) -> Measured | None:
    """Ask a graph for what validates, and fit its calibration; None where nothing validates a plain graph.

    Raises:
        UserError: nothing validates a cheaper graph, or the run's images aren't there any more.
    """
    try:
        _, validation = run_splits(run, store)
    except NothingValidatesError as error:
        if cheaper:
            raise
        print(f"Without calibration and prediction sets: {error}", flush=True)
        return None
    print("Measuring the graph on the images that validate …", flush=True)
    answers, votes = file_answers(path, validation, record.image_size, "Validation")
    stages = len(record.learners) if cheaper and cheaper.cascade else 1
    calibration = fit_calibration(answers, votes, validation.labels, stages, record.prior)
    return Measured(
        record=record,
        indices=held_out(run, store),
        labels=validation.labels,
        answers=calibration.apply(answers, votes),
        votes=votes,
        calibration=calibration,
    )
