"""A loaded file that answers batches of pixels: one interface, whichever runtime runs the graph."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy.typing as npt

from tailstack.engine_onnxruntime import OnnxRuntimeEngine
from tailstack.engine_openvino import OpenVinoEngine
from tailstack.errors import UserError
from tailstack.images import Pixels
from tailstack.session import PLAIN_TUNING, Device, Tuning

Runtime = Literal["onnxruntime", "openvino"]


class Engine(Protocol):
    """One file in one runtime. Several threads may call `run` at a time."""

    @property
    def runtime(self) -> str:
        """Name and version, such as `onnxruntime 1.32.0`."""

    @property
    def provider(self) -> str:
        """What really runs the graph, such as `CPUExecutionProvider`."""

    @property
    def on_cpu(self) -> bool:
        """Whether that is the CPU, where any batch size costs no more than its images."""

    @property
    def properties(self) -> Mapping[str, str]:
        """The file's metadata properties."""

    @property
    def types(self) -> Mapping[str, str]:
        """Element types, such as `uint8`, by the name of the input or output."""

    def run(self, images: Pixels, outputs: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Run the graph.

        Args:
            images: uint8 `[batch, height, width, 3]`; the batch may be empty.
            outputs: names of those that are wanted.
        """


def open_engine(
    path: Path,
    runtime: Runtime = "onnxruntime",
    device: Device = "auto",
    threads: int = 0,
    *,
    at_once: int = 1,
    content: bytes | None = None,
    tuning: Tuning = PLAIN_TUNING,
) -> Engine:
    """Load a file.

    Args:
        path: the file.
        runtime: `openvino` needs the extra of that name, and runs on CPUs.
        device: as in `tailstack.session.open_session`.
        threads: threads of one inference on the CPU; 0 takes one a core.
        at_once: inferences that may run side by side.
        content: the file's bytes, where the caller has read them already.
        tuning: of ONNX Runtime on the CPU.

    Raises:
        UserError: the runtime isn't installed, the file can't be loaded, or the device was asked for in vain.
    """
    if runtime == "onnxruntime":
        return OnnxRuntimeEngine.open(path, device, threads, content=content, tuning=tuning)
    if device not in ("auto", "cpu"):
        raise UserError(f"device {device} needs the runtime onnxruntime: OpenVINO is used on CPUs alone")
    return OpenVinoEngine.open(path, threads, at_once=at_once, content=content)
