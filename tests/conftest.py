"""Small real things that every test may use: a datastore, a finished run, its exported model, and photos."""

import logging
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import httpx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings as hypothesis_settings
from moto.server import ThreadedMotoServer
from PIL import Image

from tailstack import datastore as datastores
from tailstack.datastore import Datastore
from tailstack.files import write_json
from tailstack.images import decode
from tailstack.metrics import Accuracy, evaluate
from tailstack.run import CONFIG_FILE, SPLIT_FILE, WEIGHTS_FILE, LearnerRecord, RunRecord, learner_folder

if TYPE_CHECKING:
    import torch

# How long an example takes is up to whatever else the machine does.
hypothesis_settings.register_profile("tailstack", deadline=None)
hypothesis_settings.load_profile("tailstack")

ROOT = Path(__file__).parent.parent
CLASSES = ["disc", "stripes", "square", "cross", "gradient", "ring"]
TRAIN_COUNTS = [120, 60, 24, 12, 6, 4]
TEST_IMAGES = 8
PRIOR = [0.3, 0.2, 0.2, 0.1, 0.1, 0.1]
SIZE = 32
LEARNERS = [("tf_efficientnet_lite0", 32), ("test_efficientnet", 48)]
SMALL_LEARNERS = [("test_efficientnet", 48), ("test_resnet", 40)]
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


@pytest.fixture(scope="session", autouse=True)
def crashes_are_told() -> Iterator[None]:
    """Keep Lightning from silencing a crash of this process.

    At each fit, Lightning looks up every signal's handler and sets it again at the end. Python knows nothing of those
    that pytest's faulthandler has set in C for the signals of a crash, and so takes and sets the default, which prints
    no traceback.
    """
    with pytest.MonkeyPatch.context() as patch:
        # Tests are collected by now: whichever of them trains here has imported Lightning, which takes seconds.
        if "pytorch_lightning" in sys.modules:
            from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector

            patch.setattr(_SignalConnector, "_valid_signals", staticmethod(lambda: signal.valid_signals() - CRASHES))
        yield


@pytest.fixture(scope="session")
def tiny_datastore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A datastore of 32x32 PNGs of six shapes: long-tailed train (120 to 4 a class), balanced test (8 a class)."""
    folder = tmp_path_factory.mktemp("tiny-datastore")
    rng = np.random.default_rng(0)
    for split, counts in (("train", TRAIN_COUNTS), ("test", [TEST_IMAGES] * len(CLASSES))):
        names, labels = [], []
        for label, (shape, count) in enumerate(zip(CLASSES, counts, strict=True)):
            (folder / "images" / split / shape).mkdir(parents=True)
            for number in range(count):
                names.append(f"{split}/{shape}/{number}.png")
                labels.append(label)
                Image.fromarray(draw(shape, rng)).save(folder / "images" / names[-1])
        datastores.save_split(folder / f"{split}.json", folder / "images", CLASSES, names, np.array(labels))
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_datastore: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on `tiny_datastore`: two networks with random weights, at 32 and 48 pixels."""
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", tiny_datastore, LEARNERS)


@pytest.fixture(scope="session")
def small_run(tiny_datastore: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run like `tiny_run`, of two networks that take little time to export."""
    return write_run(tmp_path_factory.mktemp("runs") / "small", tiny_datastore, SMALL_LEARNERS)


@pytest.fixture(scope="session")
def tiny_export(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The ONNX file that `python -m export` makes of `tiny_run`, and the lines that it prints meanwhile."""
    output = tmp_path_factory.mktemp("models") / "ensemble.onnx"
    command = [sys.executable, "-m", "export", str(tiny_run), "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return output, done.stdout.splitlines()


@pytest.fixture(scope="session")
def tiny_model(tiny_export: tuple[Path, list[str]]) -> Path:
    """The ONNX file that `python -m export` makes of `tiny_run`."""
    return tiny_export[0]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """A machine that has the store's address and keys, and copies nothing yet."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "test")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("machine")))
            # Another module may have had a store: moto keeps what was in it, and fsspec the client of its address.
            httpx.post(f"http://{host}:{port}/moto-api/reset", timeout=120).raise_for_status()
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            fsspec.filesystem("s3").mkdir("bucket")
            yield patch
    finally:
        server.stop()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of CIFAR-50 photos (train/ and test/ with a folder a class), unpacked from TAILSTACK_DATA."""
    data = os.environ.get("TAILSTACK_DATA")
    archive = Path(data or "", "cifar50.zip")
    if not data or not archive.is_file():
        pytest.skip("the photos are needed: set TAILSTACK_DATA to the folder that contains cifar50.zip")
    folder = tmp_path_factory.mktemp("photos")
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return next(path.parent for path in sorted(folder.rglob("train")) if path.is_dir())


def draw(shape: str, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw one noisy shape of random place, size and colours: uint8 `[32, 32, 3]`."""
    y, x = np.mgrid[:SIZE, :SIZE] - rng.uniform(12, 20, (2, 1, 1))
    radius = rng.uniform(6, 11)
    distance = np.hypot(x, y)
    mask = {
        "disc": distance < radius,
        "stripes": np.sin(x * rng.uniform(0.8, 1.4)) > 0,
        "square": np.maximum(abs(x), abs(y)) < radius,
        "cross": np.minimum(abs(x), abs(y)) < radius / 3,
        "gradient": np.clip(x / SIZE + 0.5, 0, 1),
        "ring": abs(distance - radius) < 2,
    }[shape]
    weight = np.asarray(mask, dtype=np.float64)[..., None]
    background, colour = rng.uniform(0, 110, 3), rng.uniform(140, 255, 3)
    pixels = background + weight * (colour - background) + rng.normal(0, 8, (SIZE, SIZE, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def write_run(run: Path, datastore: Path, learners: list[tuple[str, int]], seed: int = 0) -> Path:
    """Write a finished run of untrained `learners` (architecture, resolution), its results measured like `fit`'s."""
    import torch

    from tailstack.network import load_ensemble

    store = datastores.load(datastore)
    train = torch.from_numpy(np.stack([decode(store.train.read(i)) for i in range(0, len(store.train), 4)]))
    test = torch.from_numpy(np.stack([decode(store.test.read(i)) for i in range(len(store.test))]))
    torch.manual_seed(seed)
    records = [
        _write_learner(run, f"{k}-{architecture}", resolution, store, train)
        for k, (architecture, resolution) in enumerate(learners)
    ]
    record = RunRecord(
        technique="stacking",
        classes=store.classes,
        class_counts=store.train.counts(len(store.classes)).tolist(),
        image_size=(SIZE, SIZE),
        learners=records,
        weights=[0.6, *[0.4 / (len(records) - 1)] * (len(records) - 1)] if len(records) > 1 else [1.0],
        temperature=1.25,
        results={},
        average_learner={},
        datastore={"path": str(datastore), **store.digests()},
        config={"technique": "stacking", "datastore": str(datastore), "output": str(run), "seed": seed},
        versions={"torch": torch.__version__},
        seconds=1.0,
    )
    with torch.inference_mode():
        probabilities, votes = (output.numpy() for output in load_ensemble(run, record)(test))
    record.results = _results(probabilities, store)
    for k, learner in enumerate(record.learners):
        learner.results = _results(votes[:, k], store)
    average = np.mean([learner.results["top1"] for learner in record.learners])
    record.average_learner = {"top1": float(average)}
    (run / CONFIG_FILE).write_text("technique: stacking\n")
    write_json(run / SPLIT_FILE, {"datastore_sha256": store.digests(), **_split(len(store.train))})
    record.save(run)
    return run


def _split(images: int) -> dict[str, list[int]]:
    """Hold out every fourth training image."""
    return {
        "train": [index for index in range(images) if index % 4],
        "val": list(range(0, images, 4)),
    }


def _write_learner(run: Path, name: str, resolution: int, store: Datastore, images: "torch.Tensor") -> LearnerRecord:
    """Save one learner whose random head and fitted batch statistics give answers that differ between images."""
    import torch
    from safetensors.torch import save_file
    from torch import nn

    from tailstack.network import Head, Learner, architecture_config

    architecture = name.split("-", 1)[1]
    head: Head = "linear" if name.startswith("0-") else "cosine"
    learner = Learner(architecture, len(store.classes), resolution, head=head).train()
    for module in learner.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    nn.init.normal_(learner.backbone.get_classifier().weight, std=0.05)
    with torch.no_grad():
        learner(images)
    folder = learner_folder(run, name)
    folder.mkdir(parents=True)
    save_file(learner.state_dict(), folder / WEIGHTS_FILE)
    config = architecture_config(architecture)
    return LearnerRecord(
        name=name,
        architecture=architecture,
        resolution=resolution,
        mean=list(config["mean"]),
        std=list(config["std"]),
        parameters=sum(parameter.numel() for parameter in learner.parameters()),
        head=head,
        loss="none",
        train_images=len(store.train),
        prior=PRIOR,
        results={},
    )


def _results(probabilities: npt.NDArray[np.float32], store: Datastore) -> dict[str, object]:
    accuracy: Accuracy = evaluate(
        probabilities, store.test.labels, store.classes, store.train.counts(len(store.classes))
    )
    return {name: value for name, value in accuracy.items() if name != "per_class"}
