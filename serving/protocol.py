"""What goes over the wire: a request's parameters, and its answer."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from serving.batcher import Result
from serving.errors import ErrorDetail, malformed
from serving.runtime import Model
from tailstack.artifact import LearnerCard
from tailstack.images import FORMATS

DEFAULT_TOP_K = 5
_NAMES = ("top_k", "min_probability", "learners")
_MAX_DIGITS = 40
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Options:
    """How much of an answer is wanted."""

    top_k: int = DEFAULT_TOP_K
    min_probability: float = 0.0
    learners: bool = True

    @classmethod
    def read(cls, *sources: Mapping[str, str]) -> "Options":
        """Read the parameters of a request; a later source goes over an earlier one.

        Raises:
            RequestError: a value can't be used.
        """
        values = {name: source[name] for source in sources for name in _NAMES if name in source}
        return cls(
            top_k=_top_k(values.get("top_k", str(cls.top_k))),
            min_probability=_probability(values.get("min_probability", "0")),
            learners=_boolean(values.get("learners", "true")),
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


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    version: str


class ImageResult(BaseModel):
    """The answer for one image: classes, most probable first, and the vote of each learner that saw it."""

    predictions: list[Prediction]
    learners: list[Vote] | None = None


class ImageError(BaseModel):
    """Why one image of several has no answer."""

    error: ErrorDetail


class Classification(BaseModel):
    """The answer of `/classify`."""

    request_id: str
    model: ModelName
    predictions: list[Prediction]
    learners: list[Vote] | None = None


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
    execution_provider: str
    formats: tuple[str, ...] = FORMATS


def name_of(model: Model) -> ModelName:
    """Return the model's name and version."""
    return ModelName(name=model.artifact.name, version=model.version)


def image_result(model: Model, result: Result, options: Options) -> ImageResult:
    """Put one image's probabilities and votes into words."""
    classes = model.artifact.classes
    best = result.order[: options.top_k]
    probabilities = result.probabilities[best].tolist()
    predictions = [
        Prediction(label=classes[index], index=index, probability=probability)
        for index, probability in zip(best.tolist(), probabilities, strict=True)
        if probability >= options.min_probability
    ]
    return ImageResult(predictions=predictions, learners=_votes(model, result) if options.learners else None)


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
        execution_provider=model.provider,
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


def _top_k(text: str) -> int:
    # A number with more digits is larger than any number of classes, and slow to parse.
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise malformed("bad_top_k", f"top_k is {text[:40]!r}, and has to be a whole number of 1 or more")
    return int(text)


def _probability(text: str) -> float:
    try:
        value = float(text[:_MAX_DIGITS])
    except ValueError:
        value = math.nan
    # Not-a-number is in no range.
    if not 0 <= value <= 1:
        raise malformed("bad_min_probability", f"min_probability is {text[:40]!r}, and has to be a number from 0 to 1")
    return value


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise malformed("bad_learners", f"learners is {text[:40]!r}, and has to be true or false")
    return _BOOLEANS[text.lower()]
