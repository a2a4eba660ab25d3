"""Small images are enlarged by two products of matrices instead of by Resize, which takes longer."""

import copy

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper, numpy_helper

from tailstack.artifact import INPUT

ENLARGING = "enlarging/"
"""What the names of the matrices begin with."""
_LARGEST_SOURCE = 96
"""Pixels of a side, above which Resize is nearly as fast: the products' time for a pixel grows with it."""


def enlarged_by_products(model: ModelProto) -> ModelProto:
    """Return a copy of `model` with the same answers, in which no Resize enlarges small images.

    Args:
        model: a graph as torch exports it, of one learner or of several.
    """
    model = copy.deepcopy(model)
    graph = model.graph
    source = [dimension.dim_value for dimension in graph.input[0].type.tensor_type.shape.dim[1:3]]
    if max(source) > _LARGEST_SOURCE:
        return model
    nodes: list[NodeProto] = []
    for node in graph.node:
        target = _pixels_become(node, model)
        if target is None or not all(old < new for old, new in zip(source, target, strict=True)):
            nodes.append(node)
            continue
        rows, columns, higher = (f"{ENLARGING}{node.output[0]}/{part}" for part in ("rows", "columns", "higher"))
        matrices = [interpolation(old, new) for old, new in zip(source, target, strict=True)]
        graph.initializer.append(numpy_helper.from_array(matrices[0], rows))
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(matrices[1].T), columns))
        nodes.append(helper.make_node("MatMul", [rows, node.input[0]], [higher], name=f"{higher}_node"))
        nodes.append(helper.make_node("MatMul", [higher, columns], node.output, name=node.name))
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def interpolation(source: int, target: int) -> npt.NDArray[np.float32]:
    """Return what linear interpolation multiplies rows of pixels by, `[target, source]`; `target` is not the smaller.

    The centres of pixels keep their places (half_pixel), and what is outside is as its nearest pixel.
    """
    places = ((np.arange(target) + 0.5) * source / target - 0.5).clip(0, source - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(places[:, None] - np.arange(source))), np.float32)


def _pixels_become(node: NodeProto, model: ModelProto) -> list[int] | None:
    """Return the height and width that a node resizes the images to, or None if it does something else."""
    if node.op_type != "Resize":
        return None
    made_by = {name: other for other in model.graph.node for name in other.output}
    above = made_by.get(node.input[0])
    while above is not None and above.op_type in ("Cast", "Transpose") and above.input[0] != INPUT:
        above = made_by.get(above.input[0])
    if above is None or above.op_type not in ("Cast", "Transpose"):
        return None
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    # Batch, and a constant of all that follows it.
    sizes = made_by[node.input[3]].input[-1]
    return [int(size) for size in numpy_helper.to_array(constants[sizes])[-2:]]
