"""Enlarging by products: what torch's interpolation answers, and only where small images get more pixels."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from export.cascade import Cascade
from export.enlarge import ENLARGING, interpolation
from export.fusion import fuse
from export.graph import build_graph, build_learner_graph, is_weighted
from export.half import halve
from export.quantize import Quantizer
from export.validation import Voters
from tailstack.blend import Blend
from tailstack.network import Ensemble, Learner
from tests.conftest import CLASSES

BLEND = Blend((0.5, 0.5), 1.0)


@pytest.mark.parametrize(("source", "target"), [(1, 5), (2, 3), (7, 7), (8, 16), (32, 160), (31, 97)])
def test_the_matrix_is_torchs_interpolation(source: int, target: int) -> None:
    rows = torch.rand(2, 3, source, 4)
    expected = F.interpolate(rows, size=(target, 4), mode="bilinear", antialias=True, align_corners=False)
    np.testing.assert_allclose(interpolation(source, target) @ rows.numpy(), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(interpolation(source, target).sum(axis=1), 1, atol=1e-6)


def learners(*resolutions: int) -> list[Learner]:
    torch.manual_seed(0)
    return [Learner("test_efficientnet", len(CLASSES), resolution).eval() for resolution in resolutions]


@pytest.mark.parametrize(
    ("image_size", "enlarged"),
    [((32, 32), 2), ((24, 40), 2), ((44, 44), 1), ((24, 44), 1), ((64, 64), 0), ((30, 97), 0)],
)
def test_pixels_of_small_images_that_get_more_are_multiplied(image_size: tuple[int, int], enlarged: int) -> None:
    others = {(24, 40): (48, 44), (30, 97): (104, 112)}
    networks = learners(*others.get(image_size, (48, 40)))
    images = np.random.default_rng(0).integers(0, 256, (5, *image_size, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = torch.stack([network(torch.from_numpy(images)).softmax(1) for network in networks], dim=1).numpy()
    parts = [build_learner_graph(network, image_size) for network in networks]
    whole = build_graph(Ensemble(networks, [0.5, 0.5], 1), image_size)
    for nodes in (whole.graph.node, [node for part in parts for node in part.graph.node]):
        assert sum(node.op_type == "MatMul" for node in nodes) == 2 * enlarged
        assert (
            sum(node.op_type == "Resize" for node in nodes)
            == sum((network.resolution,) * 2 != image_size for network in networks) - enlarged
        )
    np.testing.assert_allclose(Voters(parts).vote(images), expected, atol=1e-4)
    # Of the network's own products, the first is its stem.
    for part in parts:
        assert next(node for node in part.graph.node if is_weighted(node)).op_type == "Conv"


@pytest.mark.parametrize("kept", [0, 2])
def test_integers_and_halves_begin_after_it(kept: int) -> None:
    [network] = learners(48)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    exact = build_learner_graph(network, (32, 32))
    quantizer = Quantizer(exact, [images])
    for made in (quantizer.graph(list(quantizer.blocks)[:kept]), halve(exact)):
        matrices = [tensor for tensor in made.graph.initializer if tensor.name.startswith(ENLARGING)]
        assert [tensor.data_type for tensor in matrices] == [onnx.TensorProto.FLOAT] * 2
        [first, second] = [node for node in made.graph.node if node.op_type == "MatMul"]
        assert {tensor.name for tensor in matrices} <= {*first.input, *second.input}
        assert not any(name.endswith("DequantizeLinear_Output") for name in (*first.input, *second.input))


def test_later_learners_of_a_cascade_enlarge_what_they_see() -> None:
    parts = [build_learner_graph(network, (32, 32)) for network in learners(48, 40)]
    model = fuse(parts, BLEND, Cascade((0, 1), (2.0,)), (32, 32), len(CLASSES))
    assert "Resize" not in str(model)
    assert str(model).count('op_type: "MatMul"') == 4
