"""Learners in 8-bit integers (static QDQ, weights per channel), with the blocks that suffer most left in float.

Activations are unsigned and weights signed, which is the fast pair on x86 CPUs. Preprocessing and the last layer's
output stay in float. Quantisation with calibrated ranges: Jacob et al., CVPR 2018; leaving sensitive parts in float by
their own error: as in Wu et al., "Integer Quantization for Deep Learning Inference", 2020, section 5.1 (partial
quantization).
"""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
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
from export.cascade import Votes
from export.graph import WEIGHTED
from export.validation import Voters
from tailstack.artifact import INPUT
from tailstack.errors import UserError
from tailstack.images import Pixels
from tailstack.progress import track

OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "Clip", "Relu", "MaxPool", "GlobalAveragePool"]
_RANKING_IMAGES = 64


@dataclass(frozen=True)
class Quantized:
    """Learners' graphs in 8-bit integers."""

    learners: list[ModelProto]
    kept: list[list[str]]
    """Names of the blocks of each learner that stayed in float."""


def quantize(
    learners: Sequence[ModelProto],
    calibration: Sequence[Pixels],
    objections: Callable[[list[ModelProto]], list[str]],
) -> Quantized:
    """Quantise learners, and keep the fewest blocks in float without which there are objections.

    Args:
        learners: graphs of `export.graph.build_learner_graph`.
        calibration: batches of training images, uint8 `[batch, height, width, 3]`.
        objections: what speaks against such learners together; empty if nothing does.

    Raises:
        UserError: there are objections however little is quantised.
    """
    parts = [_Learner(model, calibration) for model in learners]

    def built(blocks: Sequence[tuple[int, str]]) -> Quantized:
        kept = [[name for learner, name in blocks if learner == index] for index in range(len(parts))]
        return Quantized([part.without(names) for part, names in zip(parts, kept, strict=True)], kept)

    whole = built([])
    if not objections(whole.learners):
        return whole
    ranked = _ranked(parts, np.concatenate(list(calibration))[:_RANKING_IMAGES])
    few, many = 0, len(ranked)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if objections(built(ranked[:middle]).learners) else (few, middle)
    if many == len(ranked):
        raise UserError("int8 costs more accuracy than --max_accuracy_drop, even with only one block quantised")
    return built(ranked[:many])


class _Learner:
    """One learner's graph, and the ranges of its activations, measured once."""

    def __init__(self, model: ModelProto, calibration: Sequence[Pixels]) -> None:
        self.model = model
        self.blocks = _blocks(model)
        with tempfile.TemporaryDirectory() as folder:
            plain, augmented = Path(folder, "plain.onnx"), Path(folder, "augmented.onnx")
            onnx.save(model, plain)
            calibrator = create_calibrator(plain, OPERATORS, augmented_model_path=str(augmented))
            calibrator.collect_data(_Reader(calibration))
            self._ranges = calibrator.compute_data()
        self._biases = corrected_biases(model, calibration)

    def without(self, kept: Sequence[str]) -> ModelProto:
        """Return the graph with all blocks quantised but `kept`."""
        return self._quantized({name for name in self.blocks if name not in kept})

    def alone(self, block: str) -> ModelProto:
        """Return the graph with nothing but one block quantised."""
        return self._quantized({block})

    def _quantized(self, blocks: Set[str]) -> ModelProto:
        if not blocks:
            return self.model
        nodes = [node for block in blocks for node in self.blocks[block]]
        quantizer = QDQQuantizer(
            with_biases(self.model, self._biases, set(nodes)),
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
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
        if node.op_type in WEIGHTED:
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


def _ranked(parts: Sequence[_Learner], images: Pixels) -> list[tuple[int, str]]:
    """Return learners' blocks by the error that each makes when it alone is quantised, the worst first."""
    pairs = [(index, block) for index, part in enumerate(parts) for block in part.blocks]
    exact = [Voters([part.model]).vote(images) for part in parts]
    errors = [
        _error(Voters([parts[index].alone(block)]).vote(images), exact[index])
        for index, block in track(pairs, "Error of each block in int8", len(pairs))
    ]
    return [pairs[place] for place in np.argsort(errors, kind="stable")[::-1]]


def _error(votes: Votes, exact: Votes) -> float:
    return float(np.abs(votes - exact).mean())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's advice to root's log off the user's terminal."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
