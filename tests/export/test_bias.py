"""Bias correction: the mean of a layer's output is what it was before its weights were rounded."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from export.bias import corrected_biases, rounding_error, with_biases
from export.graph import LOGITS, build_learner_graph
from tailstack.artifact import INPUT
from tailstack.session import open_session

Array = npt.NDArray[np.float32]


class OneLayer(nn.Module):
    """A convolution without padding; its logits are the means of its channels."""

    def __init__(self, groups: int, bias: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(12, 24, 3, groups=groups, bias=bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.permute(0, 3, 1, 2).float() / 16
        return self.convolution(pixels.repeat(1, 4, 1, 1)).mean((2, 3))


def mean_logits(model: onnx.ModelProto, images: npt.NDArray[np.uint8]) -> Array:
    session = open_session(Path("layer"), "cpu", content=model.SerializeToString())
    found: Array = session.run([LOGITS], {INPUT: images})[0].mean(axis=0)
    return found


@pytest.mark.parametrize(("groups", "bias"), [(1, True), (3, False), (12, True)])
def test_rounded_weights_with_corrected_biases_keep_the_mean(groups: int, bias: bool) -> None:
    torch.manual_seed(groups)
    # Of one colour each: else the means of what a kernel's places see differ at the edges.
    colours = np.random.default_rng(groups).integers(0, 256, (7, 1, 1, 3), dtype=np.uint8)
    images = np.tile(colours, (1, 8, 8, 1))
    model = build_learner_graph(OneLayer(groups, bias).eval(), (8, 8))
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    rounded = onnx.ModelProto.FromString(model.SerializeToString())
    weight = next(item for item in rounded.graph.initializer if item.name == node.input[1])
    exact = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(exact + rounding_error(exact), weight.name))
    wanted = mean_logits(model, images)
    assert np.abs(mean_logits(rounded, images) - wanted).max() > 0.003
    biases = corrected_biases(model, [images[:4], images[4:]])
    np.testing.assert_allclose(mean_logits(with_biases(rounded, biases, {node.name}), images), wanted, atol=1e-4)
    # Where a layer stays in float, so does its bias.
    assert np.array_equal(mean_logits(with_biases(model, biases, set()), images), wanted)


def test_the_rounding_is_by_output_channel() -> None:
    weight = np.array([[1.27, 0.013], [127, 0.4], [0, 0]], np.float32).reshape(3, 2, 1, 1)
    expected = np.array([[0, -0.003], [0, -0.4], [0, 0]]).reshape(weight.shape)
    np.testing.assert_allclose(rounding_error(weight), expected, atol=1e-5)
