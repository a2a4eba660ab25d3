"""How busy `fit` keeps its model, and how much memory it takes.

    python benchmarks/training.py --datastore data/cifar50-imbalance-0.1 --resolution 64

Images per second of a learner trained as `fit` does it (augmentation, workers, logs, checkpoints) against the bare
forward, backward and step on one batch that is already in memory; and these against the same steps with torch's own
gradient of depthwise convolutions. All run in turns, so that what else the machine does falls on all of them, and the
median of the rounds' own ratios counts. Memory is what the process and its workers hold
together at the most, shared pages counted once.
"""

import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from rich.console import Console

from tailstack import datastore as datastores
from tailstack.errors import UserError
from tailstack.files import write_json
from tailstack.network import Learner
from training.dataset import TrainingData, common_image_size, load_pixels
from training.depthwise import speed_up_depthwise
from training.learner import Audience, LearnerTraining, read_log, train_learner
from training.losses import LongTailLoss
from training.memory import keep_freed_memory
from training.settings import FitSettings
from training.task import quieten
from training.techniques import LearnerPlan, Recipe

STEPS = 20
"""Steps of one measured turn."""
WARM_UP = 2
"""Bare steps that come before and aren't counted; of `fit`, that is the whole first epoch."""
VALIDATION = 64
"""Images that validate; their time isn't counted."""


class PeakMemory(threading.Thread):
    """Samples the memory of this process and its children, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._done = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        this = psutil.Process()
        while not self._done.wait(0.2):
            total = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.NoSuchProcess:
                    continue  # it ended between the listing and the look
            self.peak = max(self.peak, total)

    def stop(self) -> int:
        """Return the largest sum seen."""
        self._done.set()
        self.join()
        return self.peak


def bare_speed(
    learner: Learner, plan: LearnerPlan, images: torch.Tensor, labels: torch.Tensor, settings: FitSettings
) -> float:
    """Return images per second of forward, backward and step on one batch in memory."""
    learner.train()
    module = LearnerTraining(learner, LongTailLoss(), settings, plan, STEPS * 2)
    optimizer = module.configure_optimizers()["optimizer"]
    start = time.perf_counter()
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(learner(images), labels).backward()
        optimizer.step()
    return STEPS * len(labels) / (time.perf_counter() - start)


def fit_speed(learner: Learner, plan: LearnerPlan, data: TrainingData, settings: FitSettings) -> float:
    """Return images per second of the second epoch of `fit`; the first one starts the workers."""
    with tempfile.TemporaryDirectory() as folder:
        train_learner(learner, plan, data, LongTailLoss(), settings, Path(folder), Audience(Console(quiet=True)))
        return read_log(Path(folder))[-1]["images_per_second"]


def measure(settings: FitSettings, rounds: int) -> dict[str, float]:
    """Run all three in turns.

    Returns:
        Images per second of each (medians), the medians of the rounds' ratios, and the peak memory in GiB.

    Raises:
        UserError: there is no round, or the datastore can't be read.
    """
    if rounds < 1:
        raise UserError(f"--rounds is {rounds}, and has to be 1 or more")
    memory = PeakMemory()
    memory.start()
    store = datastores.load(settings.datastore)
    size = common_image_size(store, settings.resolution)
    count = min(len(store.train) - VALIDATION, STEPS * settings.batch_size)
    spread = np.random.default_rng(0).permutation(len(store.train))
    train, val = store.train.subset(spread[:count]), store.train.subset(spread[count : count + VALIDATION])
    pixels = load_pixels({"train": train, "val": val}, size)
    data = TrainingData(pixels["train"], train.labels, pixels["val"], val.labels)
    architecture = settings.architectures[0]
    plan = LearnerPlan(f"0-{architecture}", architecture, np.arange(count), Recipe(), tau=1.0, seed=0)
    as_torch, learner = (
        Learner(architecture, len(store.classes), settings.resolution).to(memory_format=torch.channels_last)
        for _ in range(2)
    )
    speed_up_depthwise(learner)
    images = torch.from_numpy(data.train_pixels[np.arange(settings.batch_size)])
    labels = torch.from_numpy(train.labels[: settings.batch_size])
    torchs, bare, fit = [], [], []
    for _ in range(rounds):
        torchs.append(bare_speed(as_torch, plan, images, labels, settings))
        bare.append(bare_speed(learner, plan, images, labels, settings))
        fit.append(fit_speed(learner, plan, data, settings))
    return {
        "torch": statistics.median(torchs),
        "bare": statistics.median(bare),
        "fit": statistics.median(fit),
        "fit_to_bare": statistics.median(ours / base for ours, base in zip(fit, bare, strict=True)),
        "bare_to_torch": statistics.median(ours / base for ours, base in zip(bare, torchs, strict=True)),
        "peak_memory_gib": memory.stop() / 2**30,
    }


def main() -> None:
    """Parse the command line, measure and print."""
    parser = ArgumentParser(exit_on_error=False, description=__doc__)
    parser.add_argument("--datastore", type=Path, required=True)
    parser.add_argument("--architecture", type=str, default="tf_efficientnet_lite0")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_workers", type=int, help="the default is that of `fit`")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    quieten()
    keep_freed_memory()
    settings = FitSettings(
        datastore=arguments.datastore,
        output=Path("unused"),
        architectures=[arguments.architecture],
        resolution=arguments.resolution,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        epochs=2,
        augment="flip",
    )
    figures = measure(settings, arguments.rounds)
    print(
        f"{arguments.architecture}, {settings.resolution} pixels, batch {settings.batch_size}, medians of "
        f"{arguments.rounds} rounds: bare steps {figures['bare']:.1f} images/s, {figures['bare_to_torch']:.2f} times "
        f"those with torch's own gradients; fit {figures['fit']:.1f} images/s, ratio "
        f"{figures['fit_to_bare']:.3f}; peak memory {figures['peak_memory_gib']:.2f} GiB"
    )
    if arguments.output:
        chosen = {
            name: str(value)
            for name, value in settings.to_dict().items()
            if name in ("architectures", "resolution", "batch_size")
        }
        write_json(arguments.output, {**chosen, "rounds": arguments.rounds, **figures})
