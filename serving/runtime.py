"""The model as the server sees it: loaded, checked, warmed up, and asked for batches of pixels."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tailstack.artifact import INPUT, LEARNER_PROBABILITIES, LEARNERS_USED, PROBABILITIES, Artifact
from tailstack.errors import UserError
from tailstack.images import Pixels
from tailstack.session import Device, open_session, provider_in_use

if TYPE_CHECKING:
    import onnxruntime

Vector = npt.NDArray[np.float32]
CPU = "CPUExecutionProvider"
SLOTS_PER_THREAD = 2
"""On a CPU: while one batch's answers go out and its clients' next requests come in, others keep the core busy."""
_TYPES = {INPUT: "tensor(uint8)", PROBABILITIES: "tensor(float)", LEARNER_PROBABILITIES: "tensor(float)"}


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
    session: "onnxruntime.InferenceSession"
    """For a batch that has the cores to itself."""
    narrow: "onnxruntime.InferenceSession"
    """For batches side by side, on the CPU: on one thread each, no thread of theirs waits for another."""
    slots: int
    """How many inferences run at a time; a GPU is one queue."""

    @classmethod
    def load(cls, path: Path, device: Device = "auto", threads: int = 1, max_batch: int = 1) -> "Model":
        """Load a file, check it, and run batches of it so that the first requests find it warm.

        Raises:
            UserError: the file is missing, not ours, damaged, not what its sidecar says, or can't be run.
        """
        # What is hashed is what is loaded, even if the file is replaced at that moment.
        content = _read(path)
        digest = hashlib.sha256(content).hexdigest()
        _check_sidecar(path, digest)
        session = narrow = open_session(path, device, threads, content=content)
        slots = 1
        if provider_in_use(session) == CPU:
            slots = SLOTS_PER_THREAD * threads
            narrow = open_session(path, "cpu", 1, content=content) if threads > 1 else session
        model = cls(_artifact(session, path), digest[:12], session, narrow, slots)
        for size in warm_up_sizes(model.provider, max_batch):
            model._warm_up(path, size, alone=True)
        model._warm_up(path, max_batch, alone=False)
        return model

    @property
    def provider(self) -> str:
        """The execution provider that really runs the graph."""
        return provider_in_use(self.session)

    def classify(self, images: Pixels, *, alone: bool = True) -> Answer:
        """Run the graph on uint8 `[batch, height, width, 3]` RGB images of the artifact's `image_size`.

        Args:
            images: one batch.
            alone: whether no other batch runs at the same time.
        """
        if self.provider == CPU:
            session = self.session if alone else self.narrow
            return Answer(*session.run([PROBABILITIES, LEARNER_PROBABILITIES], {INPUT: images}))
        return run_bound(self.session, images)

    def _warm_up(self, path: Path, batch: int, *, alone: bool) -> None:
        height, width = self.artifact.image_size
        try:
            answer = self.classify(np.zeros((batch, height, width, 3), dtype=np.uint8), alone=alone)
        # ONNX Runtime's errors are classes of its C module, without a common base but Exception.
        except Exception as error:
            raise UserError(f"model {path} can't be run: {str(error).splitlines()[0]}") from error
        classes, learners = len(self.artifact.classes), len(self.artifact.learners)
        if (answer.probabilities.shape, answer.votes.shape) != ((batch, classes), (batch, learners, classes)):
            raise UserError(f"model {path} doesn't answer for the classes and learners that its metadata names")


def check_model(path: Path) -> None:
    """Look at a file without the work of making it fast.

    Raises:
        UserError: the file is missing, not ours, damaged, or not what its sidecar says.
    """
    content = _read(path)
    _check_sidecar(path, hashlib.sha256(content).hexdigest())
    _artifact(open_session(path, "cpu", optimize=False, content=content), path)


def warm_up_sizes(provider: str, max_batch: int) -> list[int]:
    """Return the batches to run before the first request: on a GPU all sizes that it will ever see.

    The smallest and the largest come first: TensorRT makes one plan for whatever lies between sizes that it knows.
    """
    if provider == CPU:
        return sorted({1, max_batch})
    largest = padded_size(max_batch)
    return list(dict.fromkeys([1, largest, *(1 << power for power in range(largest.bit_length()))]))


def padded_size(batch: int) -> int:
    """Return the power of two that a batch is filled up to where each new size costs a new plan: on GPUs."""
    return 1 << (batch - 1).bit_length()


def run_bound(session: "onnxruntime.InferenceSession", images: Pixels) -> Answer:
    """Run on a GPU: sizes from a short list, and outputs that are copied once."""
    batch = len(images)
    filled = np.zeros((padded_size(batch), *images.shape[1:]), dtype=np.uint8)
    filled[:batch] = images
    binding: Any = session.io_binding()
    binding.bind_cpu_input(INPUT, filled)
    for name in (PROBABILITIES, LEARNER_PROBABILITIES):
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    probabilities, votes = binding.copy_outputs_to_cpu()
    return Answer(probabilities[:batch], votes[:batch])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"model {path} doesn't exist; make one with: python -m export RUN --output {path}") from error
    except OSError as error:
        raise UserError(f"model {path} can't be read: {error.strerror}") from error


def _check_sidecar(path: Path, digest: str) -> None:
    sidecar = path.with_name(f"{path.name}.sha256")
    try:
        words = sidecar.read_text(encoding="utf-8", errors="replace").split()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"model {path}: {sidecar.name} can't be read: {error.strerror}") from error
    if words[:1] != [digest]:
        raise UserError(f"model {path} is not the file that {sidecar.name} describes: its SHA-256 is {digest}")


def _artifact(session: "onnxruntime.InferenceSession", path: Path) -> Artifact:
    artifact = Artifact.from_properties(session.get_modelmeta().custom_metadata_map, path)
    types = {value.name: value.type for value in (*session.get_inputs(), *session.get_outputs())}
    if types != _TYPES | ({LEARNERS_USED: "tensor(int64)"} if artifact.cascade else {}):
        raise UserError(f"model {path} has not the inputs and outputs of a Tailstack model: {types}")
    return artifact
