"""The table of techniques: a name -> the learners to train. A new technique is an entry, and no branch elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tailstack.errors import UserError
from training.longtail import Indices
from training.losses import Weighting
from training.settings import FitSettings


@dataclass(frozen=True)
class LearnerPlan:
    """One learner to train."""

    name: str
    """Its folder, `<k>-<architecture>`."""
    architecture: str
    samples: Indices
    """Positions of its training images in the training split; one that stands there twice is seen twice an epoch."""
    loss: Weighting
    seed: int


@dataclass(frozen=True)
class Technique:
    """How a technique makes its learners."""

    summary: str
    samples: Callable[[Indices, FitSettings], list[Indices]]
    """From the labels of the training split to one set of positions a bag."""
    stacked: bool
    """A learner of each architecture, instead of the first architecture alone."""
    weighted: bool
    """The loss is the setting's, instead of plain cross-entropy."""


def _all_samples(labels: Indices, _settings: FitSettings) -> list[Indices]:
    return [np.arange(len(labels))]


TECHNIQUES = {
    "baseline": Technique("one learner, cross-entropy", _all_samples, stacked=False, weighted=False),
    "stacking": Technique("a learner of each architecture", _all_samples, stacked=True, weighted=False),
    "stacking-wl": Technique(
        "a learner of each architecture, with class-weighted loss", _all_samples, stacked=True, weighted=True
    ),
}


def plan_learners(settings: FitSettings, labels: Indices) -> list[LearnerPlan]:
    """List the learners of a technique, in order.

    Args:
        settings: names the technique, the architectures and the loss.
        labels: labels of the training split, `[images]`.

    Raises:
        UserError: there is no such technique.
    """
    technique = TECHNIQUES.get(settings.technique)
    if technique is None:
        raise UserError(f"there is no technique {settings.technique!r}; there are: {', '.join(TECHNIQUES)}")
    architectures = settings.architectures if technique.stacked else settings.architectures[:1]
    bags = technique.samples(labels, settings)
    pairs = [(architecture, samples) for architecture in architectures for samples in bags]
    return [
        LearnerPlan(
            name=f"{k}-{architecture}",
            architecture=architecture,
            samples=samples,
            loss=settings.loss if technique.weighted else "none",
            seed=settings.seed * 1000 + k,
        )
        for k, (architecture, samples) in enumerate(pairs)
    ]
