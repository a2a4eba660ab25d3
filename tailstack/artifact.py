"""What `ensemble.onnx` says about itself: its inputs and outputs, and the metadata under the prefix `tailstack.`."""

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from tailstack.errors import UserError

INPUT = "images"
"""uint8 `[batch, height, width, 3]`, RGB."""
PROBABILITIES = "probabilities"
"""float32 `[batch, classes]`."""
LEARNER_PROBABILITIES = "learner_probabilities"
"""float32 `[batch, learners, classes]`; zeros where a learner of a cascade did not see the image."""

CLASS_PRIOR = "class_prior"
"""float32 `[classes]`, optional: how frequent the classes are where the file is used, in any unit."""
LEARNERS_USED = "learners_used"
"""int64 `[batch]`: how many learners saw the image. Only the graph of a cascade has it."""

FORMAT = 4
"""2 added `precision`, `cascade` and `evidence`; 3 `prediction_sets` and `calibration`; 4 `validation`, `prior`, the
temperatures of a cascade, and fp16."""
Precision = Literal["fp32", "fp16", "int8"]
_PREFIX = "tailstack."


class LearnerCard(BaseModel):
    """One learner inside the graph."""

    model_config = ConfigDict(extra="forbid")

    name: str
    architecture: str
    resolution: int
    parameters: int
    weight: float
    top1: float
    """On the test split."""


class CascadeCard(BaseModel):
    """How a cascade decides which learners see an image."""

    model_config = ConfigDict(extra="forbid")

    order: list[int]
    """Learners by their place in `Artifact.learners`, in the order in which they are asked."""
    thresholds: list[float]
    """One fewer than learners: the next one sees the images whose highest averaged probability is below."""
    temperatures: list[float] | None = None
    """Of the answers, by the number of learners that saw the image, 1 to all; None: `Artifact.temperature` of all."""


class PredictionSetCard(BaseModel):
    """How probable a class has to be to be in an image's prediction set."""

    model_config = ConfigDict(extra="forbid")

    thresholds: dict[str, list[float]]
    """By coverage, such as `0.9`: the lowest probability of each class."""
    images: int
    """Validation images that they were chosen by."""

    def members(self, coverage: str, probabilities: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
        """Return which classes are in the sets of images: bool `[images, classes]`.

        The most probable class always is, so that no set is empty.

        Args:
            coverage: a key of `thresholds`.
            probabilities: `[images, classes]`.
        """
        inside = probabilities >= np.array(self.thresholds[coverage])
        inside[np.arange(len(inside)), probabilities.argmax(axis=1)] = True
        return np.asarray(inside)


class ValidationCard(BaseModel):
    """What the file answers on the images that validate, and which these are."""

    model_config = ConfigDict(extra="forbid")

    split: Literal["train", "val"]
    """Of the datastore that `Artifact.provenance` names."""
    indices: list[int] | None
    """Of the split's annotations; None is all of them."""
    figures: dict[str, float | None]
    """Some of `tailstack.metrics.Accuracy`."""


class CalibrationCard(BaseModel):
    """Expected calibration error on the images that validate, of which each class counts the same."""

    model_config = ConfigDict(extra="forbid")

    ece_before: float
    """Of the plain average of the learners that saw an image."""
    ece_after: float
    """Of the file's answers: with the weights and temperatures of the file."""


class Artifact(BaseModel):
    """The metadata of one file, complete enough to serve it and to say where it came from."""

    model_config = ConfigDict(extra="forbid")

    format: int
    """Version of this metadata; a reader refuses a newer one."""
    name: str
    technique: str
    classes: list[str]
    class_counts: list[int]
    image_size: tuple[int, int]
    """Height and width, in pixels, of the input."""
    preprocessing: str
    """What the client side of the graph must do, and what the graph does itself, in words."""
    learners: list[LearnerCard]
    temperature: float
    """What the logarithm of the average of all learners is divided by."""
    accuracy: dict[str, Any]
    """`tailstack.metrics.Accuracy` on the test split, as `fit` measured it."""
    parity: dict[str, float]
    """Largest difference from torch (in fp16 and int8, from each learner alone) by batch size, measured at export."""
    provenance: dict[str, Any]
    """Settings, versions, time of export, digests of the data and of the weights."""
    precision: Precision = "fp32"
    """Of the learners' weights and activations. Input and outputs are the same in all."""
    cascade: CascadeCard | None = None
    """None where every learner sees every image."""
    evidence: dict[str, Any] | None = None
    """What the release gate measured on the images that validate: this file beside the plain ensemble in fp32."""
    prior: list[float] | None = None
    """Share of each class among images for which the probabilities are right, and the default of `CLASS_PRIOR`; None
    where the run doesn't know it, and the graph has no such input."""
    validation: ValidationCard | None = None
    """None where nothing validated."""
    calibration: CalibrationCard | None = None
    """None where nothing validated."""
    prediction_sets: PredictionSetCard | None = None
    """None where nothing validated."""

    def to_properties(self) -> dict[str, str]:
        """Return ONNX metadata properties: one per field, prefixed, each JSON."""
        return {_PREFIX + key: json.dumps(value) for key, value in self.model_dump(mode="json").items()}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str], source: object) -> "Artifact":
        """Read the metadata of an ONNX file.

        Args:
            properties: the file's metadata properties.
            source: the file's path, for the error's text.

        Raises:
            UserError: the file wasn't written by Tailstack, or by a version with a newer format.
        """
        own = {key.removeprefix(_PREFIX): value for key, value in properties.items() if key.startswith(_PREFIX)}
        if not own:
            raise UserError(
                f"{source} is not a Tailstack model: it has no {_PREFIX}* metadata; make one with python -m export"
            )
        try:
            values = {key: json.loads(value) for key, value in own.items()}
            if int(values["format"]) > FORMAT:
                raise UserError(
                    f"{source} has format {values['format']}, newer than the {FORMAT} read here: update Tailstack"
                )
            return cls.model_validate(values)
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise UserError(f"{source} has damaged {_PREFIX}* metadata: {error}") from error
