"""What goes over the wire: a request's parameters, and its answer."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from serving.batcher import Result
from serving.errors import ErrorDetail, malformed
from serving.prior import ClassPrior, read_prior
from serving.runtime import Model, Vector
from tailstack.artifact import LearnerCard
from tailstack.images import FORMATS

DEFAULT_TOP_K = 5
_NAMES = ("top_k", "min_probability", "learners", "coverage", "class_prior")
_MAX_DIGITS = 40
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Options:
    """How much of an answer is wanted."""

    top_k: int = DEFAULT_TOP_K
    min_probability: float = 0.0
    learners: bool = True
    coverage: str | None = None
    """How often a prediction set is to have the true class: a key of the model's thresholds. None wants no set."""
    class_prior: ClassPrior | None = None
    """For which class mix probabilities are to be right; None takes the model's own."""

    @classmethod
    def read(cls, model: Model, *sources: Mapping[str, str]) -> "Options":
        """Read the parameters of a request to `model`; a later source goes over an earlier one.

        Raises:
            RequestError: a value can't be used.
        """
        values = {name: source[name] for source in sources for name in _NAMES if name in source}
        return cls(
            top_k=_top_k(values.get("top_k", str(cls.top_k))),
            min_probability=_probability(values.get("min_probability", "0")),
            learners=_boolean(values.get("learners", "true")),
            coverage=_coverage(model, values["coverage"]) if "coverage" in values else None,
            class_prior=_class_prior(model, values["class_prior"]) if "class_prior" in values else model.class_prior,
        )


class Prediction(BaseModel):
    """One class and its probability."""

    label: str
    index: int
    probability: float


class Vote(BaseModel):
    """What one learner of the ensemble takes the image for."""

    learner: str
    label: str
    probability: float
    agrees: bool
    """Whether the ensemble's most probable class is the same."""


class Uncertainty(BaseModel):
    """What the image may be besides."""

    coverage: float
    """How often the true class is in such a set."""
    prediction_set: list[str]
    """Labels, most probable first."""
    disagreement: float
    """Of the learners that saw the image: 0 where all give the same probabilities, 1 where each is sure of another
    class. The Jensen-Shannon divergence of their votes, as a share of its largest value."""


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    version: str


class ImageResult(BaseModel):
    """The answer for one image: classes, most probable first, and the vote of each learner that saw it."""

    predictions: list[Prediction]
    learners: list[Vote] | None = None
    uncertainty: Uncertainty | None = None


class ImageError(BaseModel):
    """Why one image of several has no answer."""

    error: ErrorDetail


class Classification(BaseModel):
    """The answer of `/classify`."""

    request_id: str
    model: ModelName
    predictions: list[Prediction]
    learners: list[Vote] | None = None
    uncertainty: Uncertainty | None = None


class BatchClassification(BaseModel):
    """The answer of `/classify/batch`: a result or an error for each image, in order."""

    request_id: str
    model: ModelName
    results: list[ImageResult | ImageError]


class ModelDescription(BaseModel):
    """The answer of `GET /model`."""

    name: str
    version: str
    """First 12 digits of the file's SHA-256."""
    technique: str
    classes: list[str]
    class_counts: list[int]
    image_size: tuple[int, int]
    learners: list[LearnerCard]
    accuracy: dict[str, object]
    """On the test split, as measured in training."""
    prior: list[float] | None
    """Share of each class among images for which the model's probabilities are right; None where it doesn't know."""
    coverages: list[float]
    """Of the prediction sets that a request may ask for."""
    runtime: str
    """What runs the file, with its version."""
    execution_provider: str
    formats: tuple[str, ...] = FORMATS


def name_of(model: Model) -> ModelName:
    """Return the model's name and version."""
    return ModelName(name=model.artifact.name, version=model.version)


def image_result(model: Model, result: Result, options: Options) -> ImageResult:
    """Put one image's probabilities and votes into words."""
    classes = model.artifact.classes
    own = result.probabilities
    if options.class_prior:
        probabilities = options.class_prior.apply(own)
        result = replace(result, probabilities=probabilities, order=np.argsort(-probabilities, kind="stable"))
    best = result.order[: options.top_k]
    probabilities = result.probabilities[best].tolist()
    predictions = [
        Prediction(label=classes[index], index=index, probability=probability)
        for index, probability in zip(best.tolist(), probabilities, strict=True)
        if probability >= options.min_probability
    ]
    return ImageResult(
        predictions=predictions,
        learners=_votes(model, result) if options.learners else None,
        uncertainty=_uncertainty(model, result, own, options.coverage) if options.coverage else None,
    )


def describe(model: Model) -> ModelDescription:
    """Return what `GET /model` answers."""
    artifact = model.artifact
    return ModelDescription(
        name=artifact.name,
        version=model.version,
        technique=artifact.technique,
        classes=artifact.classes,
        class_counts=artifact.class_counts,
        image_size=artifact.image_size,
        learners=artifact.learners,
        accuracy=artifact.accuracy,
        prior=artifact.prior,
        coverages=[float(coverage) for coverage in _coverages(model)],
        runtime=model.engine.runtime,
        execution_provider=model.engine.provider,
    )


def _votes(model: Model, result: Result) -> list[Vote]:
    first = int(result.order[0])
    return [
        Vote(
            learner=card.name,
            label=model.artifact.classes[choice],
            probability=float(probabilities[choice]),
            agrees=choice == first,
        )
        for card, probabilities, choice in zip(model.artifact.learners, result.votes, result.choices, strict=True)
        if choice is not None
    ]


def _uncertainty(model: Model, result: Result, own: Vector, coverage: str) -> Uncertainty:
    card = model.artifact.prediction_sets
    assert card is not None
    # A class is in its images' sets as often whatever the class mix: the model's own probabilities decide.
    inside = card.members(coverage, own[None])[0]
    labels = [model.artifact.classes[index] for index in result.order.tolist() if inside[index]]
    return Uncertainty(coverage=float(coverage), prediction_set=labels, disagreement=_disagreement(result))


def _disagreement(result: Result) -> float:
    votes = result.votes[[choice is not None for choice in result.choices]].astype(np.float64)
    largest = np.log(min(votes.shape))
    if largest == 0:
        return 0.0
    return float(np.clip((_entropy(votes.mean(axis=0)) - _entropy(votes).mean()) / largest, 0, 1))


def _entropy(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    logarithms = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return np.asarray(-(probabilities * logarithms).sum(axis=-1))


def _coverages(model: Model) -> list[str]:
    card = model.artifact.prediction_sets
    return list(card.thresholds) if card else []


def _coverage(model: Model, text: str) -> str:
    offered = _coverages(model)
    for coverage in offered:
        if _number(text) == float(coverage):
            return coverage
    choices = f"has to be one of {', '.join(offered)}" if offered else "this model has no prediction sets"
    raise malformed("bad_coverage", f"coverage is {text[:40]!r}: {choices}")


def _class_prior(model: Model, text: str) -> ClassPrior:
    try:
        return read_prior(text, model.artifact)
    except ValueError as error:
        raise malformed("bad_class_prior", f"class_prior: {error}") from error


def _number(text: str) -> float:
    """Return a number, or not-a-number, which is in no range and equals nothing."""
    try:
        return float(text[:_MAX_DIGITS])
    except ValueError:
        return math.nan


def _top_k(text: str) -> int:
    # A number with more digits is larger than any number of classes, and slow to parse.
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise malformed("bad_top_k", f"top_k is {text[:40]!r}, and has to be a whole number of 1 or more")
    return int(text)


def _probability(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise malformed("bad_min_probability", f"min_probability is {text[:40]!r}, and has to be a number from 0 to 1")
    return value


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise malformed("bad_learners", f"learners is {text[:40]!r}, and has to be true or false")
    return _BOOLEANS[text.lower()]
