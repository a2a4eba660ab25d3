"""ONNX Runtime as an engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tailstack.artifact import INPUT
from tailstack.images import Pixels
from tailstack.session import CPU, PLAIN_TUNING, Device, Tuning, open_session, provider_in_use, runtime_version

if TYPE_CHECKING:
    import onnxruntime

_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(int64)": "int64"}


@dataclass(frozen=True, eq=False)
class OnnxRuntimeEngine:
    """A file in ONNX Runtime; `tailstack.engine.Engine` says what each part is."""

    session: "onnxruntime.InferenceSession"
    runtime: str

    @classmethod
    def open(
        cls,
        path: Path,
        device: Device = "auto",
        threads: int = 0,
        *,
        content: bytes | None = None,
        tuning: Tuning = PLAIN_TUNING,
    ) -> "OnnxRuntimeEngine":
        """Load a file; arguments and errors are those of `tailstack.session.open_session`."""
        return cls(open_session(path, device, threads, content=content, tuning=tuning), runtime_version())

    @property
    def provider(self) -> str:
        """The execution provider that really runs the graph."""
        return provider_in_use(self.session)

    @property
    def on_cpu(self) -> bool:
        """Whether that is the CPU's."""
        return self.provider == CPU

    @property
    def properties(self) -> Mapping[str, str]:
        """The file's metadata properties."""
        found: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        return found

    @property
    def types(self) -> Mapping[str, str]:
        """Element types by name."""
        values = (*self.session.get_inputs(), *self.session.get_outputs())
        return {value.name: _TYPES.get(value.type, value.type) for value in values}

    def run(self, images: Pixels, outputs: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Run the graph."""
        if not self.on_cpu and len(images):
            return run_bound(self.session, images, outputs)
        answers: list[npt.NDArray[Any]] = self.session.run(list(outputs), {INPUT: images})
        return answers


def padded_size(batch: int) -> int:
    """Return the power of two that a batch is filled up to where each new size costs a new plan: on GPUs."""
    return 1 << (batch - 1).bit_length()


def run_bound(
    session: "onnxruntime.InferenceSession", images: Pixels, outputs: Sequence[str]
) -> list[npt.NDArray[Any]]:
    """Run on a GPU: sizes from a short list, and outputs that are copied once."""
    batch = len(images)
    filled = np.zeros((padded_size(batch), *images.shape[1:]), dtype=np.uint8)
    filled[:batch] = images
    binding: Any = session.io_binding()
    binding.bind_cpu_input(INPUT, filled)
    for name in outputs:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    return [answer[:batch] for answer in binding.copy_outputs_to_cpu()]
