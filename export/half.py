"""A learner in 16-bit floats (fp16), for GPUs: from its first product of weights to its last but one.

What comes before, resizing and normalising, stays in fp32, since fp16 can't tell grey levels of 0.1 apart near white;
so does the last layer, so that the logits keep their resolution. ONNX Runtime's own converter would cast between any
two operators that are to stay in fp32, and so round the pixels all the same.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.graph import is_weighted

_ONE_FLOAT_INPUT = {"Resize"}
"""Operators whose further inputs, such as scales, are fp32 always."""


def halve(model: ModelProto) -> ModelProto:
    """Return a learner's graph with weights and activations in fp16; its input and its logits are as they were.

    Args:
        model: of `export.graph.build_learner_graph`.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph  # a copy
    floats = _floats(graph)
    places = [place for place, node in enumerate(graph.node) if is_weighted(node)]
    first, last = places[0], places[-1]
    before, inside, after = graph.node[:first], graph.node[first:last], graph.node[last:]
    made = {name for node in inside for name in node.output if name in floats}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    entering, leaving = _Casts(TensorProto.FLOAT16), _Casts(TensorProto.FLOAT)
    for node in inside:
        for place in range(1 if node.op_type in _ONE_FLOAT_INPUT else len(node.input)):
            if node.input[place] in floats - made:
                node.input[place] = entering.of(node.input[place])
        _halve_attributes(node)
    for node in after:
        for place, name in enumerate(node.input):
            if name in made:
                node.input[place] = leaving.of(name)
    constants = [
        *graph.initializer,
        *(_half(weights[name], new) for name, new in entering.names.items() if name in weights),
    ]
    casts = [node for node in entering.nodes() if node.input[0] not in weights]
    nodes = [*before, *casts, *inside, *leaving.nodes(), *after]
    used = {name for node in nodes for name in node.input}
    whole = helper.make_graph(
        nodes, graph.name, graph.input, graph.output, [tensor for tensor in constants if tensor.name in used]
    )
    return helper.make_model(
        whole, producer_name=model.producer_name, opset_imports=model.opset_import, ir_version=model.ir_version
    )


class _Casts:
    """Tensors that are needed in another type, each cast once."""

    def __init__(self, to: int) -> None:
        self._to = to
        self.names: dict[str, str] = {}

    def of(self, name: str) -> str:
        """Return the name of the tensor `name` in the other type."""
        return self.names.setdefault(name, f"{name}/{TensorProto.DataType.Name(self._to).lower()}")

    def nodes(self) -> Iterator[NodeProto]:
        """Yield a Cast for each."""
        for name, new in self.names.items():
            yield helper.make_node("Cast", [name], [new], name=f"{new}_node", to=self._to)


def _floats(graph: GraphProto) -> set[str]:
    values = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return values | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}


def _half(tensor: TensorProto, name: str) -> TensorProto:
    with np.errstate(over="ignore"):  # a weight that becomes infinite shows in the votes, which are compared
        return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)


def _halve_attributes(node: NodeProto) -> None:
    """Have a node make fp16 where its attributes say that it makes fp32."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_half(attribute.t, attribute.t.name))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
