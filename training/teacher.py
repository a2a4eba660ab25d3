"""The teacher of a student: a run's whole ensemble, whose answers one learner learns beside the labels.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. On its own training images a teacher is sure, and
has little to tell but the labels. So it is asked about the very images that the student sees, augmented and mixed with
each other, as in Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022: between
images its answers tell which classes are near, and no two epochs ask the same.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tailstack.network import Ensemble, architecture_config, load_ensemble
from tailstack.run import WEIGHTS_FILE, RunRecord, learner_folder
from training.techniques import LearnerPlan


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
        return cls(run, RunRecord.load(run))

    def ensemble(self) -> Ensemble:
        """Return the network that answers, calibrated and weighted as the run is.

        Raises:
            UserError: a learner's weights are missing or don't fit.
        """
        return load_ensemble(self.run, self.record).requires_grad_(requires_grad=False)

    def start(self, plan: LearnerPlan, resolution: int) -> Path | None:
        """Return the weights that a student starts from: those of the teacher's learner of the same network, if any.

        It already has what pretrained weights would first have to learn from the labels, so that its epochs go into
        what the other learners know.
        """
        fixed = architecture_config(plan.architecture).get("fixed_input_size")
        for learner in self.record.learners:
            same = (learner.architecture, learner.head) == (plan.architecture, plan.head)
            if same and (learner.resolution == resolution or not fixed):
                return learner_folder(self.run, learner.name) / WEIGHTS_FILE
        return None


def mix(images: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
    """Mix each image of a batch with the next one (mixup: Zhang et al., ICLR 2018), by one share that is drawn for all.

    Args:
        images: uint8 `[batch, height, width, 3]`.
        generator: draws the share.

    Returns:
        float32 of the same shape and range, and the share of the image itself, from 0 to 1.
    """
    share = float(torch.rand((), generator=generator))
    pixels = images.float()
    return torch.lerp(pixels.roll(1, 0), pixels, share), share
