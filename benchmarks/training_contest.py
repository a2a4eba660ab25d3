"""Training beside timm's own script: accuracy after equal wall time, from the same weights, photos and cores.

    python benchmarks/training_peers.py --datastore data/photos-imbalance-0.1

The script is given as many epochs as it has time for, by its own speed; `fit` is then given the time that the fastest
of the script's runs took. All train on the same photos and validate on the same ones, and are measured on the test
split by the same figures. Writes training_peers.json, training_peers.md and training_peers.png, anew after each system.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, set_parsing_settings
from rich.console import Console

import tailstack
from benchmarks.machine import OtherLoad, describe_machine
from benchmarks.report import show
from benchmarks.timm_script import (
    Job,
    accuracy_of,
    epochs_within,
    find_checkout,
    lay_out,
    run_script,
    save_weights,
    settings_of,
)
from benchmarks.training_contest_report import Row, draw, markdown
from tailstack import datastore as datastores
from tailstack.datastore import Datastore
from tailstack.errors import UserError
from tailstack.files import make_folder, write_json, write_text
from tailstack.run import RunRecord, learner_folder
from training.budget import FORWARD
from training.duration import seconds_of
from training.learner import read_log
from training.longtail import stratified_split
from training.pace import within_budget
from training.settings import FitSettings

ROOT = Path(__file__).parent.parent
STEPS = 24
"""Batches of the longer of the two short runs that tell how fast the script is; the other has a third."""


@dataclass
class TrainingPeersSettings:
    """Train beside timm's own script for as long, and compare what both are worth on the test split."""

    datastore: Path
    """Folder with train.json and test.json."""
    budget: str = "5m"
    """Wall time of each system, such as 300s or 5m."""
    architecture: str = "tf_efficientnet_lite0"
    """The learner that both train."""
    resolution: int = 96
    """Height and width, in pixels, that it sees."""
    batch_size: int = 32
    lr: float = 0.0007
    """Peak of the learning rate of `fit`."""
    val_fraction: float = 0.1
    """Share of each class that validates, where the datastore has no val.json."""
    own_choice: bool = True
    """Whether `fit` also trains what it chooses by itself for so much time."""
    pretrained: bool = True
    """Whether training starts from ImageNet's weights."""
    timm: Path = Path("runs/peers/timm")
    """Checkout of timm's repository, cloned where there is none."""
    output: Path = Path("benchmarks/results")
    """Folder for training_peers.json, training_peers.md and training_peers.png."""
    seed: int = 0


def run_contest(settings: TrainingPeersSettings, folder: Path) -> Iterator[Row]:
    """Train every system, one after the other, in `folder`, and yield each one's row.

    Raises:
        UserError: a setting can't be used, the datastore or the checkout is missing, the budget is too short for `fit`,
            or a system fails.
    """
    limit = seconds_of(settings.budget)
    version = find_checkout(settings.timm)
    store = _with_validation(datastores.load(settings.datastore), settings, folder / "datastore")
    size, weights = len(store.classes), folder / "weights.safetensors"
    save_weights(settings.architecture, size, settings.resolution, weights, pretrained=settings.pretrained)
    job = Job(
        *(settings.timm.resolve(), settings.architecture, size, settings.resolution, settings.batch_size, weights),
        seed=settings.seed,
    )
    ours = _our_choices(settings)
    for choice in ours.values():
        _ask_fit(choice, store, limit, settings, folder / "asked")
    taken = []
    for name, flags in settings_of(settings.batch_size, settings.lr).items():
        print(f"{name}: timing it …", flush=True)
        row = _script_row(name, version, job, flags, store, limit, folder / name)
        taken.append(row["seconds"])
        yield row
    limit = min(taken)
    for name, choice in ours.items():
        print(f"{name}: {limit:.0f} s …", flush=True)
        yield _our_row(name, choice, store, limit, settings, folder / name)


def _our_choices(settings: TrainingPeersSettings) -> dict[str, dict[str, Any]]:
    """Return the settings of `fit` that aren't left to it, by the name of the system."""
    same = {
        "architectures": [settings.architecture],
        "resolution": settings.resolution,
        "batch_size": settings.batch_size,
        "lr": settings.lr,
    }
    return {"tailstack, the same learner": same, **({"tailstack, its own choice": {}} if settings.own_choice else {})}


def _ask_fit(
    choice: Mapping[str, Any], store: Datastore, limit: float, settings: TrainingPeersSettings, run: Path
) -> None:
    """See that `fit` finds something to train in so long, before the script trains for as long.

    Raises:
        UserError: it doesn't.
    """
    wanted = FitSettings(store.path, run, budget=f"{int(limit)}s", pretrained=settings.pretrained, **choice)
    within_budget(wanted, store, choice, Console(quiet=True), time.monotonic())


def _with_validation(store: Datastore, settings: TrainingPeersSettings, folder: Path) -> Datastore:
    """Return the datastore with a val.json, so that all systems hold the same photos out."""
    if store.val is not None:
        return store
    stay, held = stratified_split(store.train.labels, settings.val_fraction, settings.seed)
    splits = {"train": store.train.subset(stay), "val": store.train.subset(held), "test": store.test}
    make_folder(folder)
    for name, split in splits.items():
        datastores.save_split(folder / f"{name}.json", split.root.resolve(), store.classes, split.images, split.labels)
    return datastores.load(folder)


def _script_row(
    name: str, version: str, job: Job, flags: list[str], store: Datastore, limit: float, folder: Path
) -> Row:
    splits = {split_name: split for split_name, split in store.splits() if split_name != "test"}
    train, val = splits["train"], splits["val"]
    order, taken = np.random.default_rng(job.seed).permutation(len(train)), []
    most = min(STEPS, len(train) // job.batch_size)
    if most < 2:
        raise UserError(f"{len(train)} training images are too few for batches of {job.batch_size}: lower --batch_size")
    steps = (max(1, most // 3), most)
    for count in steps:
        few = {"train": train.subset(order[: count * job.batch_size]), "val": val.subset(np.arange(1))}
        place = folder / f"{count}"
        taken.append(run_script(job, flags, lay_out(few, job.classes, place / "photos"), 1, place / "run")[1])
    per_epoch = (len(train) + FORWARD * len(val)) / job.batch_size
    epochs = epochs_within(limit, taken[0], taken[1], steps, per_epoch)
    print(f"{name}: {epochs} epoch(s) …", flush=True)
    photos = lay_out({"train": train, "val": val}, job.classes, folder / "photos")
    checkpoint, seconds = run_script(job, flags, photos, epochs, folder / "run")
    figures = accuracy_of(checkpoint, job, store)
    return _row(name, version, [job.architecture], job.resolution, epochs * len(train), seconds, figures, flags)


def _our_row(
    name: str, choice: Mapping[str, Any], store: Datastore, limit: float, settings: TrainingPeersSettings, run: Path
) -> Row:
    flags = [f"--{key}={json.dumps(value)}" for key, value in choice.items()]
    flags += ["--augment", "light", "--budget", f"{int(limit)}s"]
    command = [sys.executable, "-m", "training", "fit", "--datastore", str(store.path), "--output", str(run)]
    command += ["--seed", str(settings.seed), "--pretrained", str(settings.pretrained).lower()]
    start = time.perf_counter()
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise UserError(f"fit failed: {(done.stderr or done.stdout).strip()[-1500:]}")
    record = RunRecord.load(run)
    epochs = (len(read_log(learner_folder(run, learner.name))) for learner in record.learners)
    seen = sum(count * learner.train_images for count, learner in zip(epochs, record.learners, strict=True))
    names = [learner.architecture for learner in record.learners]
    resolution = record.learners[0].resolution
    return _row(name, tailstack.__version__, names, resolution, seen, seconds, record.results, flags)


def _row(
    system: str,
    version: str,
    architectures: list[str],
    resolution: int,
    images: int,
    seconds: float,
    figures: Any,
    flags: list[str],
) -> Row:
    return Row(
        system=system,
        version=version,
        architectures=architectures,
        resolution=resolution,
        images=images,
        seconds=round(seconds, 1),
        images_per_second=images / seconds,
        top1=figures["top1"],
        balanced=figures["balanced"],
        many=figures["many"],
        medium=figures["medium"],
        few=figures["few"],
        settings=" ".join(flags),
    )


def main() -> None:
    """Parse the command line, train, write the report after each system, and print it."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        exit_on_error=False, prog="python benchmarks/training_peers.py", description=TrainingPeersSettings.__doc__
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below; flags override it")
    parser.add_class_arguments(TrainingPeersSettings)
    values = parser.parse_args().as_dict()
    values.pop("config")
    settings = TrainingPeersSettings(**values)
    # A folder that can't be written is found before minutes of training.
    output = make_folder(settings.output)
    others, rows, text = OtherLoad(), list[Row](), ""
    with tempfile.TemporaryDirectory() as folder:
        for row in run_contest(settings, Path(folder)):
            rows.append(row)
            machine = {**describe_machine("torch", os.cpu_count() or 1), "cores_of_others": round(others.cores(), 2)}
            text = markdown(rows, machine)
            write_json(output / "training_peers.json", rows)
            write_text(output / "training_peers.md", text)
            draw(rows, output / "training_peers.png")
    show(text)
