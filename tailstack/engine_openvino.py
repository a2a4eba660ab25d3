"""OpenVINO as an engine, for the same file on CPUs."""

import importlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from tailstack.artifact import INPUT, LEARNERS_USED
from tailstack.errors import UserError
from tailstack.images import Pixels

if TYPE_CHECKING:
    import openvino

_METADATA = "framework"
"""Where OpenVINO keeps the metadata properties of an ONNX file."""
_POOLS = {"AvgPool", "MaxPool"}


@dataclass(frozen=True, eq=False)
class OpenVinoEngine:
    """A file in OpenVINO; `tailstack.engine.Engine` says what each part is."""

    compiled: "openvino.CompiledModel"
    runtime: str
    properties: Mapping[str, str]
    types: Mapping[str, str]
    provider: str = "CPU"
    on_cpu: bool = True
    _idle: "list[openvino.InferRequest]" = field(default_factory=list)

    @classmethod
    def open(
        cls,
        path: Path,
        threads: int = 0,
        *,
        at_once: int = 1,
        content: bytes | None = None,
        precision: Literal["f32", "bf16"] = "f32",
    ) -> "OpenVinoEngine":
        """Load a file.

        Args:
            path: the file.
            threads: threads of one inference; 0 takes one a core.
            at_once: inferences that run side by side, with so many threads each; what is more waits.
            content: the file's bytes, where the caller has read them already.
            precision: of the products of what is float in the file. OpenVINO's own choice is bf16 where the processor
                has it, with which its answers would be others than ONNX Runtime's.

        Raises:
            UserError: OpenVINO isn't installed, or the file can't be loaded.
        """
        library = _import_library()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": at_once,
            "INFERENCE_NUM_THREADS": threads * at_once,
            "INFERENCE_PRECISION_HINT": precision,
            # Pinned, the threads of several workers would share a core while others are free.
            "ENABLE_CPU_PINNING": False,
        }
        content = _read(path) if content is None else content
        try:
            model = _convert(content)
            compiled = library.Core().compile_model(model, "CPU", settings)
        # OpenVINO's errors are classes of its C module, without a common base but Exception.
        except Exception as error:
            raise UserError(f"model {path} can't be loaded by OpenVINO: {_reason(str(error))}") from error
        version = library.__version__.partition("-")[0]
        return cls(compiled, f"openvino {version}", _properties(model), _types(model))

    def run(self, images: Pixels, outputs: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Run the graph."""
        # Pooling layers refuse a batch without images.
        if not len(images):
            one = np.zeros((1, *images.shape[1:]), np.uint8)
            return [answer[:0] for answer in self.run(one, outputs)]
        # A request is one caller's at a time; popping and appending are atomic.
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        answers = request.infer({INPUT: images})
        found = [np.asarray(answers[name]) for name in outputs]
        self._idle.append(request)
        return found


def _import_library() -> Any:
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise UserError("OpenVINO isn't installed: pip install 'tailstack[openvino]'") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"model {path} can't be read ({error.strerror}); make one: python -m export RUN") from error


def _convert(content: bytes) -> "openvino.Model":
    """Read a file as ONNX and as nothing else; it can refer to no other file.

    OpenVINO takes external data from within the file's own folder alone; of a model given as bytes, from anywhere.
    """
    frontend = importlib.import_module("openvino.frontend").FrontEndManager().load_by_framework("onnx")
    with tempfile.TemporaryDirectory(prefix="tailstack-") as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(content)
        model = frontend.convert(frontend.load(str(file)))
    if LEARNERS_USED in _types(model):
        _let_pools_be_empty(model)
    return model


def _let_pools_be_empty(model: "openvino.Model") -> None:
    """Give pooling layers one image more, and take it away behind them: they refuse a batch without any.

    In a cascade, the batch of a larger learner is empty wherever the smaller ones are sure.
    """
    operators = importlib.import_module("openvino.opset13")
    for pool in model.get_ordered_ops():
        if pool.get_type_name() not in _POOLS:
            continue
        source, readers = pool.input_value(0), pool.output(0).get_target_inputs()
        begin = np.zeros(len(source.get_partial_shape()), np.int64)
        end = np.eye(1, len(begin), dtype=np.int64)[0]
        more = operators.pad(source, begin, end, "constant", np.float32(0))
        pool.input(0).replace_source_output(more.output(0))
        less = operators.slice(pool.output(0), np.array([0]), np.array([-1]), np.array([1]), np.array([0]))
        for reader in readers:
            reader.replace_source_output(less.output(0))
    model.validate_nodes_and_infer_types()


def _properties(model: "openvino.Model") -> dict[str, str]:
    found = model.get_rt_info()
    if _METADATA not in found:
        return {}
    return {key: value.astype(str) for key, value in found[_METADATA].items()}


def _types(model: "openvino.Model") -> dict[str, str]:
    return {port.any_name: port.element_type.to_dtype().name for port in (*model.inputs, *model.outputs)}


def _reason(text: str) -> str:
    if "external data" in text or "outside the base directory" in text:
        return "it refers to data in other files, and has to be one file"
    if "No conversion rule" in text:
        return f"it has an operator that OpenVINO doesn't know: {text.rpartition(':')[2].strip()}"
    return "damaged or cut short?"
