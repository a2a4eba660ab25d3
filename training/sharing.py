"""Learners that two runs have in common are trained once: each says what it was made of, and is looked up by that."""

import hashlib
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tailstack.datastore import Split
from tailstack.files import read_json, whole_file, write_json
from tailstack.images import Size
from tailstack.metrics import Probabilities
from tailstack.run import WEIGHTS_FILE
from training.dataset import TrainingData
from training.learner import METRICS
from training.settings import FitSettings
from training.teacher import START_SHARE
from training.techniques import LearnerPlan

ORIGIN_FILE = "origin.json"
_LOOKED_INTO = 1000
"""About so many images of a split are read to tell it from another."""
_SETTINGS = (
    "batch_size",
    "lr",
    "warm_up",
    "weight_decay",
    "epochs",
    "resolution",
    "augment",
    "pretrained",
    "precision",
)


def origin(plan: LearnerPlan, data: TrainingData, image_size: Size, settings: FitSettings) -> dict[str, Any]:
    """Return all that decides the weights of a learner, as plain values: two learners of one origin are the same."""
    recipe = asdict(plan.recipe)
    del recipe["blend"], recipe["tau"]  # of the ensemble, and of all its learners
    loss = plan.recipe.loss
    # Under a budget, time may change the epochs of a learner.
    return {
        **({"budget": settings.budget} if settings.budget else {}),
        **({"second_cycle": settings.second_cycle} if settings.second_cycle else {}),
        **({} if data.answers is None else _of_teacher(data.answers)),
        **{name: getattr(settings, name) for name in _SETTINGS},
        **recipe,
        "architecture": plan.architecture,
        "seed": plan.seed,
        "tau": plan.tau if loss == "logit_adjusted" else None,
        "beta": settings.beta if loss in ("ens", "ldam") else None,
        "class_weights": settings.class_weights,
        "image_size": list(image_size),
        "images_sha256": data.digest,
        "samples_sha256": hashlib.sha256(plan.samples.tobytes()).hexdigest(),
    }


def _of_teacher(answers: Probabilities) -> dict[str, Any]:
    return {"answers_sha256": hashlib.sha256(answers.tobytes()).hexdigest(), "start_share": START_SHARE}


def images_digest(split_file: Path, *splits: Split) -> str:
    """Return what tells images from others of the same names, on any machine: a SHA-256, as hexadecimal digits.

    It is of which images a run has, of the size of each one's file, and of the content of some, evenly spread. To read
    all of a million for this would take minutes; and another preparation of the same photos changes nearly every file.

    Args:
        split_file: the run's split.json.
        splits: of training and validation.
    """
    digest = hashlib.sha256(split_file.read_bytes())
    for split in splits:
        sizes = [split.path(i).stat().st_size for i in range(len(split))]
        digest.update(np.array(sizes, dtype=np.int64).tobytes())
        for i in range(0, len(split), max(1, len(split) // _LOOKED_INTO)):
            digest.update(split.read(i))
    return digest.hexdigest()


def adopt(folder: Path, source: dict[str, Any], runs: Path) -> bool:
    """Copy the learner that was made of `source` from a run under `runs` into `folder`; return whether there is one."""
    for path in sorted(runs.glob(f"*/learners/*/{ORIGIN_FILE}")):
        if (path.parent / WEIGHTS_FILE).exists() and path.parent != folder and read_json(path) == source:
            copy_learner(path.parent, folder)
            return True
    return False


def copy_learner(source: Path, folder: Path) -> None:
    """Copy a trained learner's files from the folder `source`, the weights last."""
    for name in (METRICS, WEIGHTS_FILE):
        with whole_file(folder / name) as part:
            shutil.copyfile(source / name, part)


def note_origin(folder: Path, source: dict[str, Any]) -> None:
    """Write down what the learner in `folder` is made of."""
    write_json(folder / ORIGIN_FILE, source)
