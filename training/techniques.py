"""The table of techniques: a name -> the learners to train. A new technique is an entry, and no branch elsewhere."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tailstack.errors import UserError
from tailstack.network import Head
from training.longtail import Indices, bags, balanced_copies
from training.settings import FitSettings, Loss


@dataclass(frozen=True)
class Recipe:
    """The settings that a technique chooses where the user leaves them open; `FitSettings` describes each."""

    loss: Loss = "none"
    tau: Sequence[float] = (1.0,)
    deferred: float = 0.0
    body_lr: float = 0.3  # of a pretrained body; see `recipe_of`
    ema: float = 0.0
    grow_from: int = 0
    freeze: float = 0.0
    blend: bool = False


@dataclass(frozen=True)
class LearnerPlan:
    """One learner to train."""

    name: str
    """Its folder, `<k>-<architecture>`."""
    architecture: str
    samples: Indices
    """Positions of its training images in the training split; one that stands there twice is seen twice an epoch."""
    recipe: Recipe
    tau: float
    """Its own among the recipe's."""
    seed: int

    @property
    def head(self) -> Head:
        """LDAM's margins are between cosines."""
        return "cosine" if self.recipe.loss == "ldam" else "linear"


@dataclass(frozen=True)
class Technique:
    """How a technique makes its learners."""

    summary: str
    samples: Callable[[Indices, FitSettings], list[Indices]]
    """From the labels of the training split to one set of positions a bag."""
    stacked: bool = False
    """A learner of each architecture, instead of the first architecture alone."""
    recipe: Recipe = Recipe()
    taught: bool = False
    """It learns from another run's ensemble, beside the labels."""
    keeps_others: bool = False
    """That run's other learners stay, and the one that is taught takes the place of its own of that architecture."""


def _all(labels: Indices, _settings: FitSettings) -> list[Indices]:
    return [np.arange(len(labels))]


def _balanced(labels: Indices, settings: FitSettings) -> list[Indices]:
    # Three quarters of the largest class: 300 of 400, as in the course project.
    threshold = settings.threshold or max(1, round(0.75 * np.bincount(labels).max()))
    return [balanced_copies(labels, threshold, settings.seed)]


def _bags(labels: Indices, settings: FitSettings) -> list[Indices]:
    threshold = settings.threshold or max(1, int(np.bincount(labels).max()) // 3)
    return bags(labels, threshold, settings.seed, by_median=settings.bag_split == "median")


TECHNIQUES = {
    "baseline": Technique("one learner, cross-entropy", _all),
    "balanced": Technique("one learner, every class copied or thinned to the same count", _balanced),
    "weighted": Technique("one learner, class-weighted loss", _all, recipe=Recipe(loss="isns")),
    "bagging": Technique("a learner a bag: all of the minority, a share of the majority", _bags),
    "bagging-wl": Technique("the same with class-weighted loss", _bags, recipe=Recipe(loss="isns")),
    "stacking": Technique("a learner of each architecture, cross-entropy", _all, stacked=True),
    "stacking-wl": Technique(
        "a learner of each architecture, class-weighted loss", _all, stacked=True, recipe=Recipe(loss="isns")
    ),
    "logit-adjusted": Technique("one learner, logit adjustment", _all, recipe=Recipe(loss="logit_adjusted")),
    "drw": Technique(
        "one learner, class weights in the last fifth of the epochs", _all, recipe=Recipe(loss="ens", deferred=0.8)
    ),
    "ldam": Technique(
        "one learner, larger margins for smaller classes, class weights in the last fifth",
        _all,
        recipe=Recipe(loss="ldam", deferred=0.8),
    ),
    "tailstack": Technique(
        "a learner of each architecture, logit adjustment of a strength of its own: the one to start with",
        _all,
        stacked=True,
        recipe=Recipe(loss="logit_adjusted", blend=True),
    ),
    "student": Technique(
        "one learner that the ensemble of another run teaches",
        _all,
        recipe=Recipe(loss="logit_adjusted", blend=True),
        taught=True,
    ),
    "taught": Technique(
        "the learners of another run, one of them taught anew by their ensemble",
        _all,
        recipe=Recipe(loss="logit_adjusted", blend=True),
        taught=True,
        keeps_others=True,
    ),
}


def find_technique(name: str) -> Technique:
    """Return the technique of that name.

    Raises:
        UserError: there is none.
    """
    if name not in TECHNIQUES:
        raise UserError(f"there is no technique {name!r}; there are: {', '.join(TECHNIQUES)}")
    return TECHNIQUES[name]


def recipe_of(settings: FitSettings) -> Recipe:
    """Return the technique's recipe, with what the user chose otherwise.

    A body that starts from random weights has as much to learn as the head, and learns as fast.

    Raises:
        UserError: there is no such technique.
    """
    names = [item.name for item in dataclasses.fields(Recipe)]
    chosen = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    from_scratch = {} if settings.pretrained else {"body_lr": 1.0}
    return dataclasses.replace(find_technique(settings.technique).recipe, **{**from_scratch, **chosen})


def completed(settings: FitSettings) -> FitSettings:
    """Return the settings with nothing left open, so that they repeat the run.

    Raises:
        UserError: there is no such technique, or it lacks its teacher, or has one and takes none.
    """
    if find_technique(settings.technique).taught != (settings.teacher is not None):
        needs = "needs a --teacher" if settings.teacher is None else "takes no --teacher"
        raise UserError(f"technique {settings.technique} {needs}: python -m training distill RUN makes a student")
    values = dataclasses.asdict(recipe_of(settings))
    return dataclasses.replace(settings, **{**values, "tau": list(values["tau"])})


def plan_learners(settings: FitSettings, labels: Indices) -> list[LearnerPlan]:
    """List the learners of a technique, in order.

    Args:
        settings: name the technique, the architectures and the loss.
        labels: labels of the training split, `[images]`.

    Raises:
        UserError: there is no such technique, or the threshold leaves no bags.
    """
    technique, recipe = find_technique(settings.technique), recipe_of(settings)
    architectures = settings.architectures if technique.stacked else settings.architectures[:1]
    parts = technique.samples(labels, settings)
    pairs = [(architecture, samples) for architecture in architectures for samples in parts]
    return [
        LearnerPlan(
            name=f"{k}-{architecture}",
            architecture=architecture,
            samples=samples,
            recipe=recipe,
            tau=recipe.tau[k % len(recipe.tau)],
            seed=settings.seed * 1000 + k,
        )
        for k, (architecture, samples) in enumerate(pairs)
    ]
