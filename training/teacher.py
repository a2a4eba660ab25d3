"""The teacher of a student: a run's whole ensemble, whose answers one learner learns beside the labels.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; the loss is `training.losses.with_teacher`.

The teacher answers each training image once, as it is, before the student trains. On the student's own augmented
batches its answers would fit a little better, but its learners together take longer for an image than a step of the
student does: on a CPU that would more than double the time of every epoch.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tailstack.blend import Blend
from tailstack.datastore import Split
from tailstack.files import sha256, whole_file
from tailstack.images import Size
from tailstack.metrics import Probabilities
from tailstack.network import architecture_config, load_learner
from tailstack.progress import track
from tailstack.remote import local
from tailstack.run import ENSEMBLE_FILE, WEIGHTS_FILE, LearnerRecord, RunRecord, learner_folder
from training.dataset import PixelSource, load_pixels
from training.evaluation import predict
from training.settings import FitSettings
from training.techniques import LearnerPlan

START_SHARE = 0.3
"""Of its twin's weights, that a student keeps. On photos left out of training, a student had 0.8300 with none of them,
0.8350 with 0.3 and 0.8340 with 0.5 (ratio 0.1); another one 0.6010 with none, 0.6045 with 0.25 and 0.6009 with 0.5
(ratio 0.005)."""


@dataclass(frozen=True)
class Teacher:
    """A finished run whose ensemble teaches."""

    run: Path
    record: RunRecord

    @classmethod
    def load(cls, run: Path) -> "Teacher":
        """Read the run in folder `run`.

        Raises:
            UserError: there is no such run, or it isn't finished.
        """
        record = RunRecord.load(run)
        return cls(local(run), record)

    def answers(
        self, train: Split, pixels: PixelSource, size: Size, cache: Path, share: Path | None = None
    ) -> Probabilities:
        """Return the ensemble's answers to the training images, float32 `[images, classes]`.

        They are calibrated and weighted as the run's are.

        Args:
            train: the training images.
            pixels: the same, decoded at `size`.
            size: height and width, in pixels.
            cache: folder that keeps the answers, for a student that goes on later.
            share: folder of runs, one of which may have kept them already.

        Raises:
            UserError: an image can't be read, the weights of a learner are missing or don't fit, or `cache` can't be
                written.
        """
        digest = sha256(self.run / ENSEMBLE_FILE)
        path = cache / f"answers-{digest[:16]}.npy"
        kept = next(share.glob(f"*/{path.name}"), path) if share else path
        if not kept.exists():
            if size != self.record.image_size:
                pixels = load_pixels({"train": train}, self.record.image_size)["train"]
            with whole_file(path) as part, part.open("wb") as file:
                np.save(file, self._answer(pixels, len(train)))
        answers: Probabilities = np.load(kept)
        return answers

    def _answer(self, pixels: PixelSource, count: int) -> Probabilities:
        record = self.record
        learners = track(record.learners, "Answers of the teacher", len(record.learners))
        votes = [predict(load_learner(self.run, learner, len(record.classes)), pixels, count) for learner in learners]
        return Blend(tuple(record.weights), record.temperature).apply(np.stack(votes, axis=1))

    def start(self, plan: LearnerPlan, resolution: int) -> Path | None:
        """Return the weights that a student starts from: those of the teacher's learner of the same network, if any.

        It already has what pretrained weights would first have to learn from the labels, so that its epochs go into
        what the other learners know.
        """
        twin = self.twin(plan)
        fixed = architecture_config(plan.architecture).get("fixed_input_size")
        if twin is None or (fixed and twin.resolution != resolution):
            return None
        return learner_folder(self.run, twin.name) / WEIGHTS_FILE

    def twin(self, plan: LearnerPlan) -> LearnerRecord | None:
        """Return the teacher's own learner of the student's network, if there is one."""
        for learner in self.record.learners:
            if (learner.architecture, learner.head) == (plan.architecture, plan.head):
                return learner
        return None

    def settings(self) -> FitSettings:
        """Return the settings that it was trained with."""
        places = {"datastore": Path(self.record.datastore["path"]), "output": self.run}
        return FitSettings(**{**self.record.config, **places})
