"""The optional input `class_prior` of a finished graph, by `tailstack.prior`'s definition.

It is an input with a value of its own, which ONNX allows from IR version 4 on: ONNX Runtime asks for it only where it
is given. OpenVINO takes the value, and has no such input.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tailstack.artifact import CLASS_PRIOR, PROBABILITIES
from tailstack.prior import TINY

_OWN = "prior/own"


def accept_prior(model: ModelProto, own: Sequence[float]) -> None:
    """Give a graph the input `class_prior`.

    Args:
        model: changed in place.
        own: the class mix for which its probabilities are right, `[classes]`: the default.
    """
    graph, shares = model.graph, np.array(own, np.float32)
    for node in graph.node:
        node.output[:] = ["prior/default" if name == PROBABILITIES else name for name in node.output]
    graph.input.append(helper.make_tensor_value_info(CLASS_PRIOR, TensorProto.FLOAT, [len(own)]))
    constants = {CLASS_PRIOR: shares, _OWN: shares, "prior/tiny": np.float32(TINY), "prior/last": np.array([1])}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Div", [CLASS_PRIOR, _OWN], "prior/ratio", {}),
        ("Max", ["prior/default", "prior/tiny"], "prior/above_zero", {}),
        ("Mul", ["prior/above_zero", "prior/ratio"], "prior/shares", {}),
        ("ReduceSum", ["prior/shares", "prior/last"], "prior/sum", {"keepdims": 1}),
        ("Div", ["prior/shares", "prior/sum"], PROBABILITIES, {}),
    ]
    for place, (operator, inputs, output, attributes) in enumerate(steps):
        graph.node.append(helper.make_node(operator, inputs, [output], name=f"prior/node_{place}", **attributes))
