"""Opening an ONNX Runtime session: one definition of its settings for export, serving and benchmarks."""

import importlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from tailstack.errors import UserError

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"
Device = Literal["auto", "cpu", "cuda", "tensorrt"]
_PROVIDERS = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_ORDER: dict[Device, list[str]] = {
    "auto": ["cuda", "cpu"],
    "cpu": ["cpu"],
    "cuda": ["cuda", "cpu"],
    "tensorrt": ["tensorrt", "cuda", "cpu"],
}
_BUILDS = ("onnxruntime", "onnxruntime-gpu")
SPIN_US = 300
"""Microseconds that a thread spins for before it sleeps. One client alone gets 2 to 4% more answers than with 20,
which is over before an operator is that runs on one thread; a thousand is no faster."""
_NOWHERE = "/nonexistent"


@dataclass(frozen=True)
class Tuning:
    """Settings of ONNX Runtime on the CPU by which it is faster or slower, at the same answers."""

    spinning: bool = True
    """Whether threads spin, for `SPIN_US` at most, while they wait for each other."""
    level: Literal["all", "extended", "none"] = "all"
    """What is done to the graph. `all` lays data out for the processor's vectors; `none` loads in a fraction of the
    time, for a look at the file."""


PLAIN_TUNING = Tuning()


def open_session(
    path: Path,
    device: Device = "auto",
    threads: int = 0,
    *,
    content: bytes | None = None,
    tuning: Tuning = PLAIN_TUNING,
) -> "onnxruntime.InferenceSession":
    """Load an ONNX file.

    Args:
        path: the file.
        device: `auto` takes CUDA where it really works and else the CPU; `cuda` and `tensorrt` fail where they don't.
        threads: threads of one inference on the CPU; 0 takes one a core.
        content: the file's bytes, where the caller has read them already; external data is then refused.
        tuning: of the CPU.

    Raises:
        UserError: no ONNX Runtime or two are installed, the file can't be loaded, or the device was asked for in vain.
    """
    runtime = _import_runtime()
    if content is None and not path.is_file():
        raise UserError(f"model {path} doesn't exist; make one with: python -m export RUN --output {path}")
    order = _ORDER[device]
    if device == "auto" and not cuda_is_offered():
        order = ["cpu"]
    if order != ["cpu"]:
        # The CUDA provider finds its libraries in their Python packages.
        runtime.preload_dlls()
    session = _load(runtime, path, content, [_PROVIDERS[name] for name in order], threads, tuning)
    if device != "auto" and session.get_providers()[0] != _PROVIDERS[device]:
        raise UserError(
            f"device {device} was asked for, but ONNX Runtime could not use it: check the driver, or ask for auto"
        )
    return session


def cuda_is_offered() -> bool:
    """Return whether the installed build may run on CUDA; whether it does only a session tells.

    Raises:
        UserError: no ONNX Runtime or two are installed.
    """
    return _PROVIDERS["cuda"] in _import_runtime().get_available_providers()


def provider_in_use(session: "onnxruntime.InferenceSession") -> str:
    """Return the execution provider that really runs the graph, such as `CPUExecutionProvider`."""
    return str(session.get_providers()[0])


def runtime_version() -> str:
    """Return name and version of the ONNX Runtime build that is installed, such as `onnxruntime 1.32.0`.

    Raises:
        UserError: none or two are.
    """
    build = _build()
    return f"{build} {importlib.metadata.version(build)}"


def _load(
    runtime: ModuleType, path: Path, content: bytes | None, providers: list[str], threads: int, tuning: Tuning
) -> "onnxruntime.InferenceSession":
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    level = {"all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "none": "ORT_DISABLE_ALL"}[tuning.level]
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(tuning.spinning)))
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    # Between inferences nothing spins.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Else ONNX Runtime looks for a format of its own first, which it checks less.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if content is not None:
        # Else a model given as bytes reads its external data from the working directory.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
    available = [name for name in providers if name in runtime.get_available_providers()]
    try:
        return runtime.InferenceSession(str(path) if content is None else content, options, providers=available)
    # ONNX Runtime's errors are classes of its C module, without a common base but Exception.
    except Exception as error:
        reason = str(error).splitlines()[0]
        if "External data" in reason:
            raise UserError(f"model {path} refers to data in other files: it has to be one file") from error
        if "is not a registered function/op" in reason:
            raise UserError(f"model {path} has an operator that ONNX Runtime doesn't know: {reason}") from error
        raise UserError(f"model {path} can't be loaded (damaged or cut short?): {reason}") from error


def _import_runtime() -> ModuleType:
    _build()
    return importlib.import_module("onnxruntime")


def _build() -> str:
    builds = [name for name in _BUILDS if _installed(name)]
    if len(builds) != 1:
        found = "both ONNX Runtime builds are" if builds else "no ONNX Runtime is"
        raise UserError(f"{found} installed; install exactly one: pip install 'tailstack[cpu]' or 'tailstack[gpu]'")
    return builds[0]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
