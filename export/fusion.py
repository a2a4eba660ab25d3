"""One graph of several learners' graphs: their average, or a cascade, in plain ONNX operators.

A cascade needs no control flow: NonZero finds the images that are unsure, Gather takes them out, ScatterND puts the
next learner's answers back. So weights stay where a runtime can fuse them, and a batch costs what its images need.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.cascade import Blend, Cascade
from export.graph import LOGITS, OPSET
from tailstack.artifact import INPUT, LEARNER_PROBABILITIES, LEARNERS_USED, PROBABILITIES
from tailstack.images import Size

_IR_VERSION = 10
_TINY = np.finfo(np.float32).tiny


def fuse(
    learners: Sequence[ModelProto], blend: Blend, cascade: Cascade | None, image_size: Size, classes: int
) -> ModelProto:
    """Join the graphs of learners, as `export.graph.build_learner_graph` makes them.

    Args:
        learners: in the order of the output `learner_probabilities`.
        blend: the learners' shares and the temperature of their average.
        cascade: None lets every learner see every image.
        image_size: height and width of the input, in pixels.
        classes: number of classes.

    Returns:
        A model with the inputs and outputs of `tailstack.artifact`, for any batch size, without metadata.
    """
    graph = _Graph(learners, classes)
    if cascade is None:
        mean, votes = _average(graph, blend)
    else:
        mean, votes = _stages(graph, blend, cascade)
    _temper(graph, mean, blend.temperature)
    axis = graph.constant(np.array([1]))
    stacked = [graph.add("Unsqueeze", vote, axis) for vote in votes]
    graph.add("Concat", *stacked, output=LEARNER_PROBABILITIES, axis=1)
    outputs = [
        helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", classes]),
        helper.make_tensor_value_info(LEARNER_PROBABILITIES, TensorProto.FLOAT, ["batch", len(learners), classes]),
    ]
    if cascade is not None:
        outputs.append(helper.make_tensor_value_info(LEARNERS_USED, TensorProto.INT64, ["batch"]))
    images = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *image_size, 3])
    whole = helper.make_graph(graph.nodes, "ensemble", [images], outputs, graph.constants)
    imports = [helper.make_opsetid("", OPSET)]
    return helper.make_model(whole, producer_name="tailstack", opset_imports=imports, ir_version=_IR_VERSION)


@dataclass
class _Graph:
    """Nodes and constants so far."""

    learners: Sequence[ModelProto]
    classes: int
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node, and return the name of its output."""
        output = output or f"fuse/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=f"{output}_node", **attributes))
        return output

    def constant(self, value: Any) -> str:
        """Append a constant, and return its name."""
        name = f"fuse/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def scalar(self, value: float) -> str:
        """Append a float32 constant, and return its name."""
        return self.constant(np.float32(value))

    def vote(self, learner: int, images: str) -> str:
        """Append a whole learner on `images`, and return the name of its probabilities, `[images, classes]`."""
        prefix = f"learner{learner}/"
        part = onnx.compose.add_prefix(self.learners[learner], prefix).graph
        for node in part.node:
            node.input[:] = [images if name == prefix + INPUT else name for name in node.input]
        self.nodes.extend(part.node)
        # Shapes noted in the part call its own batch by the name of the whole one, which is larger.
        self.constants.extend(part.initializer)
        return self.add("Softmax", prefix + LOGITS, axis=1)


def _average(graph: _Graph, blend: Blend) -> tuple[str, list[str]]:
    votes = [graph.vote(learner, INPUT) for learner in range(len(graph.learners))]
    shares = [graph.add("Mul", vote, graph.scalar(weight)) for vote, weight in zip(votes, blend.weights, strict=True)]
    return graph.add("Sum", *shares), votes


def _stages(graph: _Graph, blend: Blend, cascade: Cascade) -> tuple[str, list[str]]:
    """Append the learners in the cascade's order, each on the images that are still unsure."""
    batch = graph.add("Shape", INPUT, end=1)
    shape = graph.add("Concat", batch, graph.constant(np.array([graph.classes])), axis=0)
    zeros = graph.add("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, np.float32)))
    first, *others = cascade.order
    votes = {first: graph.vote(first, INPUT)}
    answers = mean = votes[first]
    share = blend.weights[first]
    total = graph.add("Mul", mean, graph.scalar(share))
    used = graph.add("ConstantOfShape", batch, value=numpy_helper.from_array(np.ones(1, np.int64)))
    where = ""
    for stage, (learner, threshold) in enumerate(zip(others, cascade.thresholds, strict=True), start=2):
        rows = _unsure(graph, mean, threshold)
        where = graph.add("Gather", where, rows, axis=0) if where else rows
        vote = graph.vote(learner, graph.add("Gather", INPUT, where, axis=0))
        weighted = graph.add("Mul", vote, graph.scalar(blend.weights[learner]))
        total = graph.add("Add", graph.add("Gather", total, rows, axis=0), weighted)
        share += blend.weights[learner]
        mean = graph.add("Div", total, graph.scalar(share))
        places = graph.add("Unsqueeze", where, graph.constant(np.array([1])))
        votes[learner] = graph.add("ScatterND", zeros, places, vote)
        answers = graph.add("ScatterND", answers, places, mean)
        counts = graph.add("Expand", graph.constant(np.array([stage])), graph.add("Shape", where))
        used = graph.add("ScatterND", used, places, counts)
    graph.add("Identity", used, output=LEARNERS_USED)
    return answers, [votes[learner] for learner in range(len(graph.learners))]


def _unsure(graph: _Graph, mean: str, threshold: float) -> str:
    """Append the search for the rows of `mean` whose highest probability is below `threshold`: int64 `[rows]`."""
    highest = graph.add("ReduceMax", mean, graph.constant(np.array([1])), keepdims=0)
    below = graph.add("Less", highest, graph.scalar(threshold))
    return graph.add("Squeeze", graph.add("NonZero", below), graph.constant(np.array([0])))


def _temper(graph: _Graph, mean: str, temperature: float) -> None:
    """Append what `Blend.tempered` does, as the output `probabilities`."""
    if temperature == 1:
        graph.add("Identity", mean, output=PROBABILITIES)
        return
    logarithm = graph.add("Log", graph.add("Max", mean, graph.scalar(float(_TINY))))
    divided = graph.add("Div", logarithm, graph.scalar(temperature))
    graph.add("Softmax", divided, output=PROBABILITIES, axis=1)
