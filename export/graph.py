"""Torch modules as ONNX graphs: the whole ensemble with its average, or one learner alone."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch

from export.enlarge import ENLARGING, enlarged_by_products
from tailstack.artifact import INPUT, LEARNER_PROBABILITIES, PROBABILITIES
from tailstack.errors import UserError
from tailstack.images import Size
from tailstack.network import Ensemble, Learner

LOGITS = "logits"
"""The output of one learner's graph: float32 `[batch, classes]`."""
_WEIGHTED = ("Conv", "Gemm", "MatMul")
OPSET = 18
"""Its Resize has a CUDA kernel in ONNX Runtime; that of later opsets only in the newest versions."""


def build_graph(ensemble: Ensemble, image_size: Size) -> onnx.ModelProto:
    """Export an ensemble as an ONNX model without metadata.

    Args:
        ensemble: in evaluation mode.
        image_size: height and width of the input, in pixels.

    Returns:
        A model with the inputs and outputs of `tailstack.artifact`, for any batch size, weights inside.

    Raises:
        UserError: torch can't export one of the architectures.
    """
    return _export(ensemble, image_size, [PROBABILITIES, LEARNER_PROBABILITIES])


def build_learner_graph(learner: Learner, image_size: Size) -> onnx.ModelProto:
    """Export one learner, in evaluation mode: `images` as `build_graph` has them to `logits`, for any batch size.

    Raises:
        UserError: torch can't export its architecture.
    """
    return _export(learner, image_size, [LOGITS])


def is_weighted(node: onnx.NodeProto) -> bool:
    """Return whether a node multiplies by weights of a network, or by others' activations; not what enlarges pixels."""
    return node.op_type in _WEIGHTED and not any(name.startswith(ENLARGING) for name in node.input)


def _export(network: torch.nn.Module, image_size: Size, outputs: list[str]) -> onnx.ModelProto:
    # Batch 2: the exporter takes a batch of 1 for a constant.
    example = torch.zeros((2, *image_size, 3), dtype=torch.uint8)
    for module in network.modules():
        # Same answers in half the time: torch's exporter is slow on operators that work in place.
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010 (torch declares every attribute a tensor or a module, so mypy refuses a plain False)
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT],
                output_names=outputs,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"torch can't export these architectures to ONNX: {reason}") from error
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model_proto
    _strip(model)
    return enlarged_by_products(model)


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes for its own debugging: source paths, stack traces, names of scopes."""
    del model.metadata_props[:]
    model.doc_string = ""
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer)
    for item in (*model.graph.node, *values):
        del item.metadata_props[:]
        item.doc_string = ""
    model.producer_name = "tailstack"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's talk (warnings, log records, printed steps) off the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
