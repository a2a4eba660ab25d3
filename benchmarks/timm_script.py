"""timm's own training script as a rival: its checkout, its photos, its command line, and what its checkpoint is worth.

timm publishes `train.py` in its repository alone: neither wheel nor sdist has it. It runs with the timm of its checkout
and with the torch that is installed here.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from timm.models import load_state_dict

from tailstack.datastore import Datastore, Split
from tailstack.errors import UserError
from tailstack.files import write_text
from tailstack.metrics import Accuracy, evaluate
from tailstack.network import Learner
from tailstack.progress import track
from training.pretrained import load_pretrained

REPOSITORY = "https://github.com/huggingface/pytorch-image-models"
WARM_UP = 0.25
"""Share of the epochs in which the learning rate rises, as in `fit`."""
_BATCH = 128
_CLASSES = "classes.txt"


@dataclass(frozen=True)
class Job:
    """What the script is to train, whatever its settings."""

    checkout: Path
    architecture: str
    classes: int
    resolution: int
    batch_size: int
    weights: Path
    """Where training starts, as `save_weights` writes it."""
    seed: int = 0


def settings_of(batch_size: int, lr: float) -> dict[str, list[str]]:
    """Return the script's settings under comparison, by the name of the system.

    The first are those of the script's documentation for EfficientNets, with the learning rate that timm's author
    advises for fine-tuning (a tenth of that for training from scratch, in proportion to the batch: his repository's
    issue 25); what it leaves open is the script's default. The second are those of `fit`, as far as the script has
    them.

    Args:
        batch_size: images of a step.
        lr: peak learning rate of `fit`.
    """
    advised = 0.1 * 0.016 * batch_size / 256
    return {
        "timm, its author's advice": [
            *("--opt", "rmsproptf", "--opt-eps", ".001", "--weight-decay", "1e-5"),
            *("--lr", f"{advised:g}", "--warmup-lr", "1e-6"),
        ],
        "timm, settings of fit": [
            *("--opt", "adamw", "--weight-decay", "0.05", "--lr", f"{lr:g}", "--warmup-lr", f"{lr / 25:g}"),
            *("--scale", "0.7", "1", "--color-jitter", "0", "--smoothing", "0"),
        ],
    }


def find_checkout(folder: Path) -> str:
    """Return the version of the checkout in `folder`, cloned where there is none: the installed timm's release.

    Raises:
        UserError: it can't be cloned.
    """
    if not (folder / "train.py").is_file():
        command = [
            "git",
            "clone",
            "--quiet",
            "--depth",
            "1",
            "--branch",
            f"v{timm.__version__}",
            REPOSITORY,
            str(folder),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(
                f"timm's training script can't be fetched ({done.stderr.strip()[-200:]}); put a checkout of "
                f"{REPOSITORY} at {folder}, or name one with --timm"
            )
    found = re.search(r"""__version__ = ['"](.+?)['"]""", (folder / "timm" / "version.py").read_text(encoding="utf-8"))
    return found[1] if found else "unknown"


def save_weights(architecture: str, classes: int, resolution: int, path: Path, *, pretrained: bool) -> None:
    """Write what `fit` starts from, ImageNet's weights with a classifier of zeros, for the script to start from too."""
    learner = Learner(architecture, classes, resolution)
    if pretrained:
        load_pretrained(learner, architecture)
    save_file(learner.backbone.state_dict(), path)


def lay_out(splits: Mapping[str, Split], classes: int, folder: Path) -> Path:
    """Link the photos of `splits` into `folder` as the script wants them: SPLIT/CLASS/PHOTO."""
    names = [f"{label:05d}" for label in range(classes)]
    for split_name, split in splits.items():
        for name in names:
            (folder / split_name / name).mkdir(parents=True)
        for index, label in enumerate(split.labels):
            source = split.path(index).resolve()
            (folder / split_name / names[label] / f"{index:07d}{source.suffix}").symlink_to(source)
    write_text(folder / _CLASSES, "\n".join(names) + "\n")
    return folder


def run_script(job: Job, settings: list[str], photos: Path, epochs: int, output: Path) -> tuple[Path, float]:
    """Train.

    Args:
        job: what is trained.
        settings: flags of the script besides those that the job decides.
        photos: as `lay_out` makes them, with the splits `train` and `val`.
        epochs: how long.
        output: an empty or new folder.

    Returns:
        The checkpoint that was best on `val`, and the wall time of the whole command in seconds.

    Raises:
        UserError: the script fails; the message has the end of its log.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    command = [sys.executable, str(job.checkout / "train.py"), "--data-dir", str(photos), "--val-split", "val"]
    command += ["--class-map", str(photos / _CLASSES), "--initial-checkpoint", str(job.weights)]
    command += ["--output", str(output), "--experiment", "run", "--checkpoint-hist", "1", "--seed", str(job.seed)]
    command += ["--model", job.architecture, "--num-classes", str(job.classes), "--device", device]
    command += ["--img-size", str(job.resolution), "--crop-pct", "1", "--batch-size", str(job.batch_size)]
    command += ["--channels-last", "--workers", str(len(os.sched_getaffinity(0)))]
    # The learning rate falls with each step: there are too few epochs for steps of an epoch.
    command += ["--epochs", str(epochs), "--warmup-epochs", str(round(WARM_UP * epochs)), "--sched-on-updates"]
    start = time.perf_counter()
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    checkpoint = output / "run" / "model_best.pth.tar"
    if done.returncode or not checkpoint.is_file():
        raise UserError(f"timm's training script failed: {(done.stderr or done.stdout).strip()[-1500:]}")
    return checkpoint, seconds


def epochs_within(seconds: float, short: float, long: float, steps: tuple[int, int], per_epoch: float) -> int:
    """Return how many epochs the script has time for: one at least.

    Args:
        seconds: of the whole command.
        short: seconds that a command took which did the fewer of `steps`.
        long: seconds that a command took which did the more.
        steps: batches of both.
        per_epoch: batches of an epoch, validation counted by its cost.
    """
    step = max(1e-9, (long - short) / (steps[1] - steps[0]))
    start = max(0.0, short - step * steps[0])
    return max(1, int((seconds - start) / (step * per_epoch)))


def accuracy_of(checkpoint: Path, job: Job, store: Datastore) -> Accuracy:
    """Return our figures of a checkpoint on the test photos, prepared as the script prepares those that validate."""
    model = timm.create_model(job.architecture, num_classes=job.classes)
    model.load_state_dict(load_state_dict(str(checkpoint)))
    model = model.to(memory_format=torch.channels_last).eval()
    config = resolve_data_config({"img_size": job.resolution, "crop_pct": 1.0}, model=model)
    transform = create_transform(**config)
    test, answers = store.test, []
    batches = [range(start, min(start + _BATCH, len(test))) for start in range(0, len(test), _BATCH)]
    with torch.inference_mode():
        for batch in track(batches, "Testing timm's checkpoint", len(batches)):
            images = torch.stack([transform(Image.open(test.path(index)).convert("RGB")) for index in batch])
            answers.append(torch.softmax(model(images.to(memory_format=torch.channels_last)), dim=1).numpy())
    return evaluate(np.concatenate(answers), test.labels, store.classes, store.train.counts(job.classes))
