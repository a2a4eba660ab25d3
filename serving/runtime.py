"""The model as the server sees it: loaded, checked, warmed up, and asked for batches of pixels."""

import hashlib
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.prior import ClassPrior, load_prior
from serving.tuning import Setup
from tailstack.artifact import INPUT, LEARNER_PROBABILITIES, LEARNERS_USED, PROBABILITIES, Artifact
from tailstack.engine import Engine, Runtime, open_engine
from tailstack.engine_onnxruntime import padded_size
from tailstack.errors import UserError
from tailstack.images import Pixels
from tailstack.remote import fetch
from tailstack.session import Device, Tuning
from tailstack.signature import check_signature, signature_file

Vector = npt.NDArray[np.float32]
SPARE_SLOTS = 1
"""On a CPU, beyond one a thread: while a batch's answers go out and its clients' next requests come in, another one
keeps the core busy. Two more would only make smaller batches, and change threads more often."""
_TYPES = {INPUT: "uint8", PROBABILITIES: "float32", LEARNER_PROBABILITIES: "float32"}


@dataclass(frozen=True)
class Answer:
    """Probabilities of a batch."""

    probabilities: Vector
    """float32 `[batch, classes]`, the ensemble's."""
    votes: Vector
    """float32 `[batch, learners, classes]`, each learner's; zeros of one that a cascade didn't ask."""


@dataclass(frozen=True, eq=False)
class Model:
    """One loaded file."""

    artifact: Artifact
    version: str
    """First 12 digits of the file's SHA-256."""
    engine: Engine
    """For an image that has the cores to itself."""
    narrow: Engine
    """For batches side by side, on the CPU: on one thread each, no thread of theirs waits for another."""
    slots: int
    """How many inferences run at a time; a GPU is one queue."""
    class_prior: ClassPrior | None = None
    """The operator's: for which class mix answers are right, where a request names none."""
    seconds: float = math.inf
    """That one image took alone, when the file was loaded."""

    @classmethod
    def load(
        cls,
        path: Path,
        device: Device = "auto",
        threads: int = 1,
        max_batch: int = 1,
        runtime: Runtime = "onnxruntime",
        setup: Setup | None = None,
        class_prior: Path | None = None,
        public_key: Path | None = None,
    ) -> "Model":
        """Load a file, check it, and run batches of it so that the first requests find it warm.

        Args:
            path: the file.
            device: as in `tailstack.session.open_session`.
            threads: threads of one inference on the CPU.
            max_batch: images of one inference at most.
            runtime: what runs the file.
            setup: what `serving.tuning` chose; the default is all threads.
            class_prior: file of the operator's class mix.
            public_key: file of the key that has to have signed the model; None takes any model.

        Raises:
            UserError: the file is missing, not ours, damaged, not what its sidecar or its signature says, or can't be
                run.
        """
        content, digest = _read(path, public_key)
        setup = setup or Setup(threads=threads)
        engine = narrow = open_engine(path, runtime, device, setup.threads, content=content, tuning=setup.tuning)
        slots = 1
        if engine.on_cpu:
            slots = threads + SPARE_SLOTS
            if threads > 1:
                tuning = Tuning(level=setup.level)
                narrow = open_engine(path, runtime, "cpu", 1, at_once=threads, content=content, tuning=tuning)
        artifact = _artifact(engine, path)
        prior = load_prior(class_prior, artifact) if class_prior else None
        model = cls(artifact, _version(digest), engine, narrow, slots, prior)
        for size in warm_up_sizes(engine.on_cpu, max_batch):
            model._warm_up(path, size, alone=True)
        model._warm_up_side_by_side(path, max_batch)
        start = time.perf_counter()
        model._warm_up(path, 1, alone=True)
        return replace(model, seconds=time.perf_counter() - start)

    def answers_as(self, other: "Model") -> bool:
        """Return whether it is the same file under the same class mix."""
        own, theirs = (model.class_prior.shares.tolist() if model.class_prior else None for model in (self, other))
        return self.version == other.version and own == theirs

    def classify(self, images: Pixels, *, alone: bool = True) -> Answer:
        """Run the graph on uint8 `[batch, height, width, 3]` RGB images of the artifact's `image_size`.

        Args:
            images: one batch.
            alone: whether no other batch runs at the same time.
        """
        engine = self.engine if alone else self.narrow
        probabilities, votes = engine.run(images, (PROBABILITIES, LEARNER_PROBABILITIES))
        return Answer(probabilities, votes)

    def _warm_up_side_by_side(self, path: Path, batch: int) -> None:
        """Take the memory of the worst moment now: the runtime keeps what it took, and memory would climb later."""
        with ThreadPoolExecutor(self.slots) as slots:
            for run in [slots.submit(self._warm_up, path, batch, alone=False) for _ in range(self.slots)]:
                run.result()

    def _warm_up(self, path: Path, batch: int, *, alone: bool) -> None:
        height, width = self.artifact.image_size
        try:
            answer = self.classify(np.zeros((batch, height, width, 3), dtype=np.uint8), alone=alone)
        # The runtimes' errors are classes of their C modules, without a common base but Exception.
        except Exception as error:
            raise UserError(f"model {path} can't be run: {str(error).splitlines()[0]}") from error
        classes, learners = len(self.artifact.classes), len(self.artifact.learners)
        if (answer.probabilities.shape, answer.votes.shape) != ((batch, classes), (batch, learners, classes)):
            raise UserError(f"model {path} doesn't answer for the classes and learners that its metadata names")


@dataclass(frozen=True, eq=False)
class CheckedModel:
    """A file that can be served, as far as can be told without the work of making it fast."""

    artifact: Artifact
    version: str
    """First 12 digits of the file's SHA-256."""
    content: bytes
    """What was checked: the file may be another one by now."""


def check_model(path: Path, runtime: Runtime = "onnxruntime", public_key: Path | None = None) -> CheckedModel:
    """Look at a file without the work of making it fast.

    Raises:
        UserError: the file is missing, not ours, damaged, or not what its sidecar or its signature says.
    """
    content, digest = _read(path, public_key)
    engine = open_engine(path, runtime, "cpu", content=content, tuning=Tuning(level="none"))
    return CheckedModel(_artifact(engine, path), _version(digest), content)


def fetch_model(place: Path) -> Path:
    """Return where a model file is on this machine, fetched first if it lies in an object store.

    What lies beside it comes with it: its sidecar and its signature.

    Raises:
        UserError: it can't be fetched.
    """
    file = fetch(place)
    for beside in (sidecar(place), signature_file(place)):
        fetch(beside, missing_ok=True)
    return file


def sidecar(path: Path) -> Path:
    """Return where the SHA-256 of a model file is, if it has one."""
    return path.with_name(f"{path.name}.sha256")


def warm_up_sizes(on_cpu: bool, max_batch: int) -> list[int]:
    """Return the batches to run before the first request: on a GPU all sizes that it will ever see.

    The smallest and the largest come first: TensorRT makes one plan for whatever lies between sizes that it knows.
    """
    if on_cpu:
        return sorted({1, max_batch})
    largest = padded_size(max_batch)
    return list(dict.fromkeys([1, largest, *(1 << power for power in range(largest.bit_length()))]))


def _read(path: Path, public_key: Path | None) -> tuple[bytes, str]:
    """Return a file's bytes and their SHA-256: what is checked is what is loaded, even if the file is replaced now."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"model {path} doesn't exist; make one with: python -m export RUN --output {path}") from error
    except OSError as error:
        raise UserError(f"model {path} can't be read: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    _check_sidecar(path, digest)
    if public_key:
        check_signature(path, content, public_key)
    return content, digest


def _check_sidecar(path: Path, digest: str) -> None:
    beside = sidecar(path)
    try:
        words = beside.read_text(encoding="utf-8", errors="replace").split()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"model {path}: {beside.name} can't be read: {error.strerror}") from error
    if words[:1] != [digest]:
        raise UserError(f"model {path} is not the file that {beside.name} describes: its SHA-256 is {digest}")


def _version(digest: str) -> str:
    return digest[:12]


def _artifact(engine: Engine, path: Path) -> Artifact:
    artifact = Artifact.from_properties(engine.properties, path)
    types = engine.types
    if types != _TYPES | ({LEARNERS_USED: "int64"} if artifact.cascade else {}):
        raise UserError(f"model {path} has not the inputs and outputs of a Tailstack model: {types}")
    return artifact
