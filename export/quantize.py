"""Learners in 8-bit integers (static QDQ, weights per channel), with the blocks that suffer most left in float.

Weights are signed; activations unsigned, which is the fast pair on x86 CPUs, or signed. Preprocessing and the last
layer's output stay in float. Quantisation with calibrated ranges: Jacob et al., CVPR 2018; leaving sensitive parts in
float by their own error: as in Wu et al., "Integer Quantization for Deep Learning Inference", 2020, section 5.1
(partial quantization).
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime.quantization import (
    QDQQuantizer,
    QuantType,
    create_calibrator,
)

from export.bias import corrected_biases, with_biases
from export.equalize import equalized
from export.graph import is_weighted
from export.validation import Voters
from tailstack.artifact import INPUT
from tailstack.images import Pixels
from tailstack.progress import track

OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "Clip", "Relu", "MaxPool", "GlobalAveragePool"]


class Quantizer:
    """One learner's graph, and what its integers need: equal channels, ranges of activations and biases, found once.

    Args:
        model: a graph of `export.graph.build_learner_graph`.
        calibration: batches of training images, uint8 `[batch, height, width, 3]`.
    """

    def __init__(self, model: ModelProto, calibration: Sequence[Pixels]) -> None:
        self.exact = model
        self.model = model = equalized(model, calibration)
        self.blocks = _blocks(model)
        with tempfile.TemporaryDirectory() as folder:
            plain, augmented = Path(folder, "plain.onnx"), Path(folder, "augmented.onnx")
            onnx.save(model, plain)
            calibrator = create_calibrator(plain, OPERATORS, augmented_model_path=str(augmented))
            calibrator.collect_data(_Reader(calibration))
            self._ranges = calibrator.compute_data()
        self._biases = corrected_biases(model, calibration)

    def graph(self, kept: Sequence[str] = (), *, signed: bool = False) -> ModelProto:
        """Return the graph in 8-bit integers.

        Args:
            kept: names of blocks that stay in float.
            signed: activations are signed, as GPUs want them; else unsigned.
        """
        return self._quantized({name for name in self.blocks if name not in kept}, signed)

    def ranked(self, images: Pixels) -> list[str]:
        """Return the names of the blocks by the error that each makes when it alone is quantised, the worst first."""
        exact = Voters([self.exact]).vote(images)
        errors = {
            block: float(np.abs(Voters([self._quantized({block}, False)]).vote(images) - exact).mean())
            for block in track(self.blocks, "Error of each block in int8", len(self.blocks))
        }
        return sorted(errors, key=lambda block: -errors[block])

    def _quantized(self, blocks: Set[str], signed: bool) -> ModelProto:
        if not blocks:
            return self.exact
        nodes = [node for block in blocks for node in self.blocks[block]]
        quantizer = QDQQuantizer(
            with_biases(self.model, self._biases, set(nodes)),
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if signed else QuantType.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=OPERATORS,
            # The logits keep their resolution.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        with _quiet():
            quantizer.quantize_model()
        quantizer.model.topological_sort()
        quantized: ModelProto = quantizer.model.model
        return quantized


class _Reader:
    """What ONNX Runtime takes for a `CalibrationDataReader`: by its abstract class, whatever has `get_next`."""

    def __init__(self, batches: Sequence[Pixels]) -> None:
        self._feeds = iter([{INPUT: images} for images in batches])

    def get_next(self) -> dict[str, Pixels] | None:
        return next(self._feeds, None)


def _blocks(model: ModelProto) -> dict[str, list[str]]:
    """Return the names of the nodes to quantise by block: the module whose weights they have, or that they follow."""
    weights = {tensor.name for tensor in model.graph.initializer}
    blocks: dict[str, list[str]] = {}
    current = ""
    for node in model.graph.node:
        if is_weighted(node):
            name = next((value for value in node.input if value in weights), node.name)
            current = _block_of(name)
        if node.op_type in OPERATORS and current:
            blocks.setdefault(current, []).append(node.name)
    return blocks


def _block_of(weight: str) -> str:
    """Return the module two levels above a weight: `blocks.3.0` of `blocks.3.0.conv_pw.weight`; else its own module."""
    module = weight.rpartition(".")[0] or weight
    above = module.rpartition(".")[0]
    return above if above.rpartition(".")[2].isdigit() else module


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's advice to root's log off the user's terminal."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
