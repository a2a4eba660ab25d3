"""The systems that are measured: each answers a batch of pixels with probabilities."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from tailstack.artifact import PROBABILITIES, Artifact
from tailstack.engine import Engine, Runtime, open_engine
from tailstack.engine_openvino import OpenVinoEngine
from tailstack.errors import UserError
from tailstack.files import sha256
from tailstack.images import Pixels
from tailstack.remote import fetch
from tailstack.run import WEIGHTS_FILE, RunRecord, learner_folder

Probabilities = npt.NDArray[np.float32]
Predict = Callable[[Pixels], Probabilities]
"""uint8 `[batch, height, width, 3]` RGB -> float32 `[batch, classes]`."""


@dataclass(frozen=True)
class OnnxModel:
    """The file under test, in a runtime with the settings that serving uses."""

    path: Path
    artifact: Artifact
    engine: Engine

    @classmethod
    def load(cls, path: Path, threads: int, runtime: Runtime = "onnxruntime") -> "OnnxModel":
        """Load a file.

        Raises:
            UserError: the file is missing, not ours or damaged.
        """
        path = fetch(path)
        engine = open_engine(path, runtime, threads=threads)
        return cls(path, Artifact.from_properties(engine.properties, path), engine)

    @property
    def provider(self) -> str:
        """What really runs the graph."""
        return self.engine.provider

    def predict(self, images: Pixels) -> Probabilities:
        """Return the ensemble's probabilities."""
        return engine_predictor(self.engine)(images)


def engine_predictor(engine: Engine) -> Predict:
    """Return the function that answers with an engine's probabilities."""
    return lambda images: engine.run(images, (PROBABILITIES,))[0]


def openvino_predictor(path: Path, threads: int, precision: Literal["f32", "bf16"] = "f32") -> Predict:
    """Load a file in OpenVINO, in the precision that serving uses or in bf16.

    Raises:
        UserError: it can't be loaded, or the processor has no such precision: OpenVINO would take another one unasked.
    """
    engine = OpenVinoEngine.open(path, threads, precision=precision)
    taken = engine.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if taken != precision:
        raise UserError(f"OpenVINO computes in {taken} here, not in {precision}")
    return engine_predictor(engine)


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
    # Export may have fitted a temperature that the run hasn't.
    record.temperature = model.artifact.temperature
    ensemble = load_ensemble(run, record).to(device)
    # Freezing makes constants of the weights, so that they are laid out and joined with others once.
    forward = torch.compile(ensemble, dynamic=False, options={"freezing": True}) if compiled else ensemble

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
