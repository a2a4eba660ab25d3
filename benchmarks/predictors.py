"""The systems that are measured: each answers a batch of pixels with probabilities."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from tailstack.artifact import INPUT, PROBABILITIES, Artifact
from tailstack.errors import UserError
from tailstack.files import sha256
from tailstack.images import Pixels
from tailstack.run import WEIGHTS_FILE, RunRecord, learner_folder
from tailstack.session import open_session, provider_in_use

if TYPE_CHECKING:
    import onnxruntime

Probabilities = npt.NDArray[np.float32]
Predict = Callable[[Pixels], Probabilities]
"""uint8 `[batch, height, width, 3]` RGB -> float32 `[batch, classes]`."""


@dataclass(frozen=True)
class OnnxModel:
    """The file under test, in ONNX Runtime with the settings that serving uses."""

    path: Path
    artifact: Artifact
    session: "onnxruntime.InferenceSession"

    @classmethod
    def load(cls, path: Path, threads: int) -> "OnnxModel":
        """Load a file.

        Raises:
            UserError: the file is missing, not ours or damaged.
        """
        session = open_session(path, threads=threads)
        return cls(path, Artifact.from_properties(session.get_modelmeta().custom_metadata_map, path), session)

    @property
    def provider(self) -> str:
        """The execution provider that really runs the graph."""
        return provider_in_use(self.session)

    def predict(self, images: Pixels) -> Probabilities:
        """Return the ensemble's probabilities."""
        probabilities: Probabilities = self.session.run([PROBABILITIES], {INPUT: images})[0]
        return probabilities


def openvino_predictor(path: Path, threads: int, precision: Literal["f32", "bf16"] = "f32") -> Predict:
    """Load a file in OpenVINO, with its hint for low latency.

    Args:
        path: the file.
        threads: threads of one inference.
        precision: of the products; OpenVINO's own choice is bf16 where the processor has it.
    """
    import openvino  # noqa: PLC0415 (an extra)

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def predict(images: Pixels) -> Probabilities:
        return np.asarray(compiled({INPUT: images})[PROBABILITIES], np.float32)

    return predict


def torch_predictor(model: OnnxModel, run: Path | None, threads: int, *, compiled: bool = False) -> Predict:
    """Build the ensemble that `model` was exported from in PyTorch: channels_last, inference mode.

    Args:
        model: the exported file, whose device is used.
        run: the folder of its run; None takes the one that the file names.
        threads: threads of one operator on the CPU.
        compiled: by torch.compile, anew for each batch size, instead of eager.

    Raises:
        UserError: there is no such run, or its weights are not those of the file.
    """
    import torch  # noqa: PLC0415 (seconds to import, and a file alone is measured without it)

    from tailstack.network import load_ensemble  # noqa: PLC0415 (imports torch)

    run = run or Path(model.artifact.provenance["run"])
    record = RunRecord.load(run)
    _check_weights(model, run, record)
    torch.set_num_threads(threads)
    device = torch.device("cuda" if model.provider.startswith("CUDA") else "cpu")
    ensemble = load_ensemble(run, record).to(device)
    forward = torch.compile(ensemble, dynamic=False) if compiled else ensemble

    def predict(images: Pixels) -> Probabilities:
        with torch.inference_mode():
            probabilities: Probabilities = forward(torch.from_numpy(images).to(device))[0].cpu().numpy()
        return probabilities

    return predict


def _check_weights(model: OnnxModel, run: Path, record: RunRecord) -> None:
    digests = {name: learner_folder(run, name) / WEIGHTS_FILE for name in (learner.name for learner in record.learners)}
    found = {name: sha256(path) for name, path in digests.items() if path.is_file()}
    if found != model.artifact.provenance["weights"]:
        raise UserError(f"run {run} has other weights than {model.path} was exported from: name its run with --run")
