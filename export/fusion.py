"""One graph of several learners' graphs: their average, or a cascade.

In a cascade, NonZero finds the images that are unsure, Gather takes them out, and ScatterND puts the next learners'
answers back. The next learners stand in a branch of an If, together with their weights, which a runtime fuses there as
it does outside: without it they would run on no image at all where none is unsure, and of a Lite trio in int8 that
takes nearly half as long as its Lite0 does for one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.cascade import Cascade
from export.graph import LOGITS, OPSET
from tailstack.artifact import INPUT, LEARNER_PROBABILITIES, LEARNERS_USED, PROBABILITIES
from tailstack.blend import Blend
from tailstack.images import Size
from tailstack.prior import TINY

_IR_VERSION = 10


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
    """Nodes and constants so far, of the whole graph or of a branch."""

    learners: Sequence[ModelProto]
    classes: int
    prefix: str = "fuse"
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node, and return the name of its output."""
        output = output or f"{self.prefix}/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=f"{output}_node", **attributes))
        return output

    def constant(self, value: Any) -> str:
        """Append a constant, and return its name."""
        name = f"{self.prefix}/constant_{len(self.constants)}"
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

    def either(self, condition: str, then: "_Graph", names: Sequence[str], otherwise: Sequence[str]) -> list[str]:
        """Append an If, and return the names of its outputs.

        Args:
            condition: name of a bool, which says whether it is `then`.
            then: the branch.
            names: what it gives.
            otherwise: what there is without it, of the same types.
        """
        other = _Graph(self.learners, self.classes, f"{then.prefix}/otherwise")
        same = [other.add("Identity", name) for name in otherwise]
        branches = {"then_branch": then.branch(names), "else_branch": other.branch(same)}
        outputs = [f"{then.prefix}/output_{place}" for place in range(len(names))]
        self.nodes.append(helper.make_node("If", [condition], outputs, name=f"{then.prefix}/If", **branches))
        return outputs

    def branch(self, names: Sequence[str]) -> GraphProto:
        """Return this graph as a branch that gives an answer, a count and votes, in this order."""
        types = [(TensorProto.FLOAT, [None, self.classes])] * len(names)
        types[1] = (TensorProto.INT64, [None])
        outputs = [helper.make_tensor_value_info(name, *kind) for name, kind in zip(names, types, strict=True)]
        return helper.make_graph(self.nodes, self.prefix, [], outputs, self.constants)


def _average(graph: _Graph, blend: Blend) -> tuple[str, list[str]]:
    votes = [graph.vote(learner, INPUT) for learner in range(len(graph.learners))]
    shares = [graph.add("Mul", vote, graph.scalar(weight)) for vote, weight in zip(votes, blend.weights, strict=True)]
    return graph.add("Sum", *shares), votes


@dataclass(frozen=True)
class _Seen:
    """Images that the first learners of a cascade have seen, by the names of what there is of them."""

    learners: int
    share: float
    """Of these learners together."""
    images: str
    total: str
    """The learners' votes times their shares, `[images, classes]`."""
    mean: str
    """The same over `share`."""


def _stages(graph: _Graph, blend: Blend, cascade: Cascade) -> tuple[str, list[str]]:
    """Append the learners in the cascade's order, each on the images that are still unsure."""
    first, *others = cascade.order
    vote = graph.vote(first, INPUT)
    share = blend.weights[first]
    seen = _Seen(1, share, INPUT, graph.add("Mul", vote, graph.scalar(share)), vote)
    answers, used, *later = _ask_next(graph, blend, cascade, seen)
    graph.add("Identity", used, output=LEARNERS_USED)
    votes = {first: vote, **dict(zip(others, later, strict=True))}
    return answers, [votes[learner] for learner in range(len(graph.learners))]


def _ask_next(graph: _Graph, blend: Blend, cascade: Cascade, seen: _Seen) -> list[str]:
    """Append the learners that have not seen these images, for those that are unsure.

    Returns:
        The names of their answers, of how many learners saw each, and of the votes of each such learner.
    """
    rows_of = graph.add("Shape", seen.mean, end=1)
    used = graph.add("Expand", graph.constant(np.array([seen.learners])), rows_of)
    if seen.learners == len(cascade.order):
        return [seen.mean, used]
    shape = graph.add("Concat", rows_of, graph.constant(np.array([graph.classes])), axis=0)
    zeros = graph.add("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, np.float32)))
    without = [seen.mean, used, *[zeros] * (len(cascade.order) - seen.learners)]
    rows = _unsure(graph, seen.mean, cascade.thresholds[seen.learners - 1])
    some = graph.add("Greater", graph.add("Size", rows), graph.constant(np.int64(0)))
    branch = _Graph(graph.learners, graph.classes, f"stage{seen.learners + 1}")
    found = _ask_one(branch, blend, cascade, seen, rows)
    places = branch.add("Unsqueeze", rows, branch.constant(np.array([1])))
    whole = [branch.add("ScatterND", old, places, new) for old, new in zip(without, found, strict=True)]
    return graph.either(some, branch, whole, without)


def _ask_one(graph: _Graph, blend: Blend, cascade: Cascade, seen: _Seen, rows: str) -> list[str]:
    """Append the next learner for some `rows` of the images, and then the others: returns what `_ask_next` does."""
    learner = cascade.order[seen.learners]
    images = graph.add("Gather", seen.images, rows, axis=0)
    vote = graph.vote(learner, images)
    weighted = graph.add("Mul", vote, graph.scalar(blend.weights[learner]))
    total = graph.add("Add", graph.add("Gather", seen.total, rows, axis=0), weighted)
    share = seen.share + blend.weights[learner]
    mean = graph.add("Div", total, graph.scalar(share))
    answers, used, *votes = _ask_next(graph, blend, cascade, _Seen(seen.learners + 1, share, images, total, mean))
    return [answers, used, vote, *votes]


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
    logarithm = graph.add("Log", graph.add("Max", mean, graph.scalar(float(TINY))))
    divided = graph.add("Div", logarithm, graph.scalar(temperature))
    graph.add("Softmax", divided, output=PROBABILITIES, axis=1)
