"""Bias correction: what rounded weights add to a layer's mean output is taken off its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section 4.2, with
means of inputs measured on training images.
"""

import copy
from collections.abc import Mapping, Sequence, Set

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from export.activations import Array, observed
from tailstack.images import Pixels

_LARGEST = 127
"""Of the integers that a weight becomes."""


def corrected_biases(model: ModelProto, images: Sequence[Pixels]) -> dict[str, Array]:
    """Return the biases that convolutions need when their weights are 8-bit integers, by the node's name.

    Args:
        model: a graph of `export.graph.build_learner_graph`.
        images: batches of training images, uint8 `[batch, height, width, 3]`.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Conv" and constants.keys() >= set(node.input[1:])]
    means = _channel_means(model, sorted({node.input[0] for node in nodes}), images)
    found = {}
    for node in nodes:
        weight, *bias = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
        added = _added(rounding_error(weight), means[node.input[0]], _groups(node))
        found[node.name] = bias[0] - added if bias else -added
    return found


def with_biases(model: ModelProto, biases: Mapping[str, Array], nodes: Set[str]) -> ModelProto:
    """Return a copy of `model` in which some nodes have other biases."""
    model = copy.deepcopy(model)
    for node in model.graph.node:
        if node.name in nodes and node.name in biases:
            # Under a name of its own: layers may share one.
            name = f"{node.name}/bias"
            node.input[:] = [*node.input[:2], name]
            model.graph.initializer.append(numpy_helper.from_array(biases[node.name], name))
    return model


def rounding_error(weight: Array) -> Array:
    """Return what rounding to signed 8-bit integers, symmetric and by output channel, adds to a weight."""
    scale = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True) / _LARGEST
    scale[scale == 0] = 1
    return np.asarray(np.round(weight / scale) * scale - weight, np.float32)


def _added(error: Array, means: Array, groups: int) -> Array:
    """Return the mean change of each output channel: the kernel's error times the mean inputs of its group."""
    kernels = error.sum(axis=tuple(range(2, error.ndim))).reshape(groups, -1, error.shape[1])
    return np.asarray(np.einsum("goi,gi->go", kernels, means.reshape(groups, -1)).ravel(), np.float32)


def _channel_means(model: ModelProto, names: list[str], images: Sequence[Pixels]) -> dict[str, Array]:
    """Return the mean of each channel of some tensors, `[channels]`, over all images and places."""
    sums = [np.zeros(1) for _ in names]
    for values in observed(model, names, images):
        sums = [total + value.mean(axis=(2, 3)).sum(axis=0) for total, value in zip(sums, values, strict=True)]
    count = sum(map(len, images))
    return {name: np.asarray(total / count, np.float32) for name, total in zip(names, sums, strict=True)}


def _groups(node: NodeProto) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "group"), 1)
