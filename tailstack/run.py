"""The run: the folder that `training` writes and that `export` reads.

config.yaml                       every setting; repeats the run
budget.json                       the plan of a run with a budget of time, and the epochs of each learner so far
split.json                        which images of train.json are trained on, and which validate
answers-<digest>.npy              of a student's run: what its teacher answers to the training images
learners/<k>-<architecture>/      weights.safetensors, checkpoint, metrics.csv, TensorBoard events
ensemble.json                     written last: its presence means that the run is finished
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tailstack.errors import UserError
from tailstack.files import read_json, sha256, write_json
from tailstack.remote import fetch, local, spelled

ENSEMBLE_FILE = "ensemble.json"
CONFIG_FILE = "config.yaml"
SPLIT_FILE = "split.json"
WEIGHTS_FILE = "weights.safetensors"


class LearnerRecord(BaseModel):
    """One trained learner: what it takes to build it again, and what it reached on the test split."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """Its folder under learners/, such as `0-tf_efficientnet_lite0`."""
    architecture: str
    resolution: int
    """Height and width, in pixels, that its backbone sees."""
    mean: list[float]
    std: list[float]
    """What pixels in [0, 1] are normalised by, one value a channel."""
    parameters: int
    head: Literal["linear", "cosine"] = "linear"
    loss: str
    train_images: int
    prior: list[float] | None = None
    """Share of each class among images for which its probabilities are right; None in runs of earlier versions."""
    results: dict[str, Any]
    """`tailstack.metrics.Accuracy` on the test split, without `per_class`."""
    validation: dict[str, Any] = {}
    """The same on the images that validate, which is what choices are made by."""


class RunRecord(BaseModel):
    """The content of `ensemble.json`."""

    model_config = ConfigDict(extra="forbid")

    technique: str
    classes: list[str]
    class_counts: list[int]
    """Images of each class in train.json, which decide what is many, medium and few."""
    image_size: tuple[int, int]
    """Height and width, in pixels, that an image has when it enters the ensemble."""
    learners: list[LearnerRecord]
    weights: list[float]
    """Share of each learner in the average; they sum to 1."""
    temperature: float
    """What the logarithm of the average is divided by, before it is made to sum to 1 again."""
    results: dict[str, Any]
    """`tailstack.metrics.Accuracy` of the ensemble on the test split."""
    validation: dict[str, Any] = {}
    """The same on the images that validate."""
    validation_counts: list[int] | None = None
    """How many these are of each class; None in runs of earlier versions."""
    per_class: list[dict[str, Any]] = []
    """`tailstack.metrics.ClassFigures` of the ensemble on the test split."""
    confusion: list[list[int]] | None = None
    """Test images by true class (row) and most probable class (column); None for more classes than a page shows."""
    reliability: list[dict[str, Any]] = []
    """`tailstack.metrics.ReliabilityBin` of the ensemble on the test split."""
    average_learner: dict[str, Any]
    """Mean over learners of their top1, many, medium and few."""
    datastore: dict[str, str]
    """Path, and SHA-256 of each split's file."""
    config: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    """Wall time of training, over all sittings."""
    teacher_sha256: str | None = None
    """Of a student's run: `weights_digest` of its teacher."""

    @property
    def prior(self) -> list[float] | None:
        """The class mix for which the ensemble's probabilities are right; None where a learner's is unknown."""
        priors = [learner.prior for learner in self.learners if learner.prior is not None]
        if len(priors) < len(self.learners):
            return None
        return [
            sum(weight * share for weight, share in zip(self.weights, shares, strict=True))
            for shares in zip(*priors, strict=True)
        ]

    @classmethod
    def load(cls, run: Path) -> "RunRecord":
        """Read `ensemble.json` of the run in folder `run`, fetched first if that lies in an object store.

        Raises:
            UserError: there is no such run, it isn't finished, or the file is not of this form.
        """
        place, run = spelled(run), fetch(run, missing_ok=True)
        if not run.is_dir():
            raise UserError(f"run {place} doesn't exist; make one with: python -m training fit --output {place} …")
        if not (run / ENSEMBLE_FILE).exists():
            again = f"python -m training fit --config {run / CONFIG_FILE}"
            known = (run / CONFIG_FILE).exists()
            raise UserError(
                f"run {place} isn't finished; go on with: {again}"
                if known
                else f"{place} is not a run: no {CONFIG_FILE}"
            )
        try:
            return cls.model_validate(read_json(run / ENSEMBLE_FILE))
        except ValidationError as error:
            raise UserError(f"{run / ENSEMBLE_FILE} is not of this version's form: {error}") from error

    def save(self, run: Path) -> None:
        """Write `ensemble.json` into folder `run`, whole or not at all.

        Raises:
            UserError: it can't be written.
        """
        write_json(run / ENSEMBLE_FILE, self.model_dump(mode="json"))


def learner_folder(run: Path, name: str) -> Path:
    """Return where the learner `name` of `run` keeps its files.

    Raises:
        UserError: `run` lies in an object store, and has `..` in it.
    """
    return local(run) / "learners" / name


def weights_digest(run: Path, record: RunRecord) -> str:
    """Return what tells a run's learners from those of another training: hexadecimal digits.

    Raises:
        OSError: the weights of one can't be read.
    """
    files = [learner_folder(run, learner.name) / WEIGHTS_FILE for learner in record.learners]
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def student_folder(run: Path, *, keep_others: bool = False) -> Path:
    """Return the run of `run`'s student where nothing else is said: beside it, as RUN-student.

    Args:
        run: folder of the teacher.
        keep_others: whether the student is to stand among the teacher's other learners: as RUN-taught.
    """
    named = run.resolve() if run.name in {"", ".."} else run
    return named.with_name(f"{named.name}-{'taught' if keep_others else 'student'}")
