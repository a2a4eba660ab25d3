"""Values inside a learner's graph, on images: what the making of integers goes by."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto

from tailstack.artifact import INPUT
from tailstack.images import Pixels
from tailstack.session import open_session

Array = npt.NDArray[np.float32]


def observed(model: ModelProto, names: list[str], images: Sequence[Pixels]) -> Iterator[list[Array]]:
    """Yield the values of some tensors for each batch.

    Args:
        model: a graph of `export.graph.build_learner_graph`.
        names: of tensors in it.
        images: batches, uint8 `[batch, height, width, 3]`.
    """
    watched = copy.deepcopy(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = open_session(Path("learner"), "cpu", content=watched.SerializeToString())
    for batch in images:
        yield session.run(names, {INPUT: batch})
