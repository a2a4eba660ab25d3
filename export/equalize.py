"""Equalisation: channels of one tensor get one range, so that 8-bit integers serve each of them alike.

Cross-layer equalisation of Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV
2019), section 4.1, for the outputs of convolutions that no activation follows, with ranges measured on training images.
Where convolutions write into one sum (a stage of residual blocks), its channels are scaled alike in all of them. In
float the graph answers as before; integers have one scale for a whole tensor, which its widest channel decides. The
weights need nothing of it: those of each output channel have a scale of their own.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from scipy.cluster.hierarchy import DisjointSet

from export.activations import Array, observed
from tailstack.images import Pixels

_NARROWEST = 1e-3
"""Of the widest range, below which a channel is not scaled further."""


@dataclass(frozen=True)
class Stream:
    """Tensors that are summed with one another, or one alone."""

    tensors: tuple[str, ...]
    writers: tuple[NodeProto, ...]
    """The convolutions whose outputs they are, or are sums of."""
    readers: tuple[NodeProto, ...]
    """The convolutions that take them."""


def equalized(model: ModelProto, images: Sequence[Pixels]) -> ModelProto:
    """Return a copy of `model` with the same answers, whose streams have channels of one range.

    Args:
        model: a graph of `export.graph.build_learner_graph`.
        images: batches of training images, uint8 `[batch, height, width, 3]`.
    """
    model = copy.deepcopy(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = streams(model)
    names = [name for stream in found for name in stream.tensors]
    widths = _channel_widths(model, names, images) if names else {}
    for stream in found:
        width = np.max([widths[name] for name in stream.tensors], axis=0)
        scale = np.maximum(width / max(width.max(), np.finfo(np.float32).tiny), _NARROWEST)
        for node in stream.writers:
            for name in node.input[1:]:
                _multiply(constants[name], 1 / scale)
        for node in stream.readers:
            _multiply_inputs(constants[node.input[1]], scale)
    return model


def streams(model: ModelProto) -> list[Stream]:
    """Return the streams that only convolutions write to and read, with weights that are theirs alone."""
    writers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    weights = {tensor.name for tensor in model.graph.initializer}
    own = {name for name in weights if len(readers.get(name, [])) == 1}
    outputs = {output.name for output in model.graph.output}

    def is_scalable(name: str) -> bool:
        node = writers.get(name)
        if node is None or name in outputs:
            return False
        return node.op_type == "Add" or (node.op_type == "Conv" and own >= set(node.input[1:]))

    def is_scaled(node: NodeProto, name: str) -> bool:
        return node.op_type == "Add" or (node.op_type == "Conv" and node.input[0] == name and node.input[1] in own)

    found = []
    for tensors in _sums(model):
        takers = [(node, name) for name in tensors for node in readers.get(name, [])]
        if all(map(is_scalable, tensors)) and all(is_scaled(node, name) for node, name in takers):
            made = tuple(writers[name] for name in tensors if writers[name].op_type == "Conv")
            found.append(Stream(tensors, made, tuple(node for node, _ in takers if node.op_type == "Conv")))
    return found


def _sums(model: ModelProto) -> list[tuple[str, ...]]:
    """Return the outputs of convolutions, those that are summed together with their sums."""
    joined: DisjointSet[str] = DisjointSet()
    for node in model.graph.node:
        if node.op_type in ("Conv", "Add"):
            joined.add(node.output[0])
        if node.op_type == "Add":
            for name in node.input:
                joined.add(name)
                joined.merge(name, node.output[0])
    return [tuple(sorted(names)) for names in joined.subsets()]


def _channel_widths(model: ModelProto, names: list[str], images: Sequence[Pixels]) -> dict[str, Array]:
    """Return the largest absolute value of each channel of some tensors, `[channels]`, over all images and places."""
    batches = ([np.abs(value).max(axis=(0, 2, 3)) for value in values] for values in observed(model, names, images))
    return {name: np.max(widths, axis=0) for name, widths in zip(names, zip(*batches, strict=True), strict=True)}


def _multiply(tensor: TensorProto, factors: Array) -> None:
    """Multiply a weight or bias by factors of its output channels."""
    values = numpy_helper.to_array(tensor)
    _put(tensor, values * factors.reshape(-1, *[1] * (values.ndim - 1)))


def _multiply_inputs(tensor: TensorProto, factors: Array) -> None:
    """Multiply a weight by factors of its input channels, of which each group of outputs has a share."""
    values = numpy_helper.to_array(tensor)
    shares = factors.reshape(-1, 1, values.shape[1], *[1] * (values.ndim - 2))
    _put(tensor, (values.reshape(len(shares), -1, *values.shape[1:]) * shares).reshape(values.shape))


def _put(tensor: TensorProto, values: Array) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values, np.float32), tensor.name))
