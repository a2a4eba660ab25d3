"""Enlarging by products: what torch's interpolation answers, and only where pixels get more."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from export.cascade import Blend, Cascade
from export.enlarge import enlarged_by_products, interpolation
from export.fusion import fuse
from export.graph import build_graph, build_learner_graph
from export.validation import Voters
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
    ("image_size", "enlarged"), [((32, 32), 2), ((24, 40), 2), ((44, 44), 1), ((24, 44), 1), ((64, 64), 0)]
)
def test_pixels_that_get_more_are_multiplied(image_size: tuple[int, int], enlarged: int) -> None:
    networks = learners(48, 40) if image_size != (24, 40) else learners(48, 44)
    parts = [build_learner_graph(network, image_size) for network in networks]
    images = np.random.default_rng(0).integers(0, 256, (5, *image_size, 3), dtype=np.uint8)
    expected = Voters(parts).vote(images)
    for model in (
        fuse(parts, BLEND, None, image_size, len(CLASSES)),
        build_graph(Ensemble(networks, [0.5] * 2, 1), image_size),
    ):
        assert sum(node.op_type == "MatMul" for node in model.graph.node) == 2 * enlarged
        assert sum(node.op_type == "Resize" for node in model.graph.node) == 2 - enlarged
    for part, votes in zip(parts, expected.swapaxes(0, 1), strict=True):
        np.testing.assert_allclose(Voters([enlarged_by_products(part)]).vote(images)[:, 0], votes, atol=1e-5)


def test_later_learners_of_a_cascade_enlarge_what_they_see() -> None:
    parts = [build_learner_graph(network, (32, 32)) for network in learners(48, 40)]
    model = fuse(parts, BLEND, Cascade((0, 1), (2.0,)), (32, 32), len(CLASSES))
    assert "Resize" not in str(model)
    assert str(model).count('op_type: "MatMul"') == 4
