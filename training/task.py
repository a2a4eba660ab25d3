"""One learner from its plan to its weights: what runs in this process, or anywhere on a cluster."""

import difflib
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as L
from safetensors.torch import load_file

from tailstack.errors import UserError
from tailstack.network import Learner
from training.dataset import TrainingData
from training.learner import Audience, train_learner
from training.losses import Counts, LongTailLoss, Vector, first_weighted_epoch, make_loss
from training.memory import keep_freed_memory
from training.pretrained import load_pretrained
from training.settings import FitSettings
from training.techniques import LearnerPlan


@dataclass(frozen=True)
class Task:
    """A learner to train, and where its files go."""

    plan: LearnerPlan
    folder: Path
    start: Path | None = None
    """Weights of the same network to start from, instead of pretrained ones."""
    share: float = 0.0
    """What is kept of them: the learner's weights are so much of those, and the rest of what it ends with."""


def train_task(task: Task, data: TrainingData, classes: list[str], settings: FitSettings, audience: Audience) -> None:
    """Train the learner, from its checkpoint if there is one, and write its weights.

    Raises:
        UserError: the pretrained weights can't be had, a weight of the user's is for a class that the datastore lacks,
            an image can't be read any more, or the folder can't be written.
        KeyboardInterrupt: the user stopped it; the checkpoint of the last whole epoch stays.
    """
    quieten()
    keep_freed_memory()
    plan = task.plan
    L.seed_everything(plan.seed, verbose=False)
    learner = Learner(plan.architecture, len(classes), settings.resolution, head=plan.head)
    start = load_file(task.start) if task.start else None
    if start:
        learner.load_state_dict(start)
    elif settings.pretrained:
        load_pretrained(learner, plan.architecture)
    loss = learner_loss(plan, data, classes, settings)
    train_learner(learner, plan, data, loss, settings, task.folder, audience, start, task.share)


def quieten() -> None:
    """Silence what torch and Lightning say to programmers, not to users."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for message in ("The '.*dataloader' does not have many workers", ".*LeafSpec.*", ".*isinstance.treespec.*"):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", "The number of training batches")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")


def class_factors(settings: FitSettings, classes: list[str]) -> Vector | None:
    """Return the user's own factor of each class, float32 `[classes]`, or None.

    Raises:
        UserError: one is for a class that the datastore lacks.
    """
    if not settings.class_weights:
        return None
    for name in settings.class_weights:
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=3, cutoff=0.4)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise UserError(f"--class_weights names a class {name!r} that the datastore lacks{hint}")
    return np.array([settings.class_weights.get(name, 1.0) for name in classes], dtype=np.float32)


def learner_counts(plan: LearnerPlan, data: TrainingData, classes: int) -> Counts:
    """Return the training images of each class that the learner sees, int64 `[classes]`."""
    # A bag may lack a class, which then has no say in its loss.
    return np.maximum(np.bincount(data.train_labels[plan.samples], minlength=classes), 1)


def learner_loss(plan: LearnerPlan, data: TrainingData, classes: list[str], settings: FitSettings) -> LongTailLoss:
    """Return the loss that the learner is trained with.

    Raises:
        UserError: a weight of the user's is for a class that the datastore lacks.
    """
    return make_loss(
        plan.recipe.loss,
        learner_counts(plan, data, len(classes)),
        class_factors(settings, classes),
        beta=settings.beta,
        tau=plan.tau,
        weights_from=first_weighted_epoch(plan.recipe.deferred, settings.epochs),
    )
