"""Equalisation: the answers stay, and channels of one tensor get one range."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import nn

from export.activations import observed
from export.equalize import equalized, streams
from export.graph import LOGITS, build_learner_graph
from export.quantize import Quantizer
from tailstack.artifact import INPUT
from tailstack.network import Learner
from tailstack.session import open_session
from tests.conftest import CLASSES, SIZE

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def images() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (24, SIZE, SIZE, 3), dtype=np.uint8)


class Residual(nn.Module):
    """A stem, two convolutions that add to what it wrote, and a grouped one that reads the sum."""

    def __init__(self, groups: int, bias: bool = True, *, activation: bool = False, shared: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, bias=bias)
        self.first = nn.Conv2d(12, 12, 1, bias=bias)
        self.second = self.first if shared else nn.Conv2d(12, 12, 1, bias=bias)
        self.last = nn.Conv2d(12, 24, 3, groups=groups, bias=bias)
        self.activation = nn.ReLU() if activation else nn.Identity()
        with torch.no_grad():
            # From narrow to wide, as pretrained networks have them.
            self.stem.weight *= torch.logspace(-2, 1, 12).view(-1, 1, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stream = self.stem(images.permute(0, 3, 1, 2).float() / 255)
        stream = stream + self.first(stream)
        stream = self.activation(stream + self.second(stream))
        return self.last(stream).mean((2, 3))


def residual(groups: int = 1, **how: bool) -> onnx.ModelProto:
    torch.manual_seed(groups)
    return build_learner_graph(Residual(groups, **how).eval(), (SIZE, SIZE))  # type: ignore[arg-type]  # not a Learner


def logits(model: onnx.ModelProto, images: Pixels) -> npt.NDArray[np.float32]:
    session = open_session(Path("learner"), "cpu", content=model.SerializeToString())
    found: npt.NDArray[np.float32] = session.run([LOGITS], {INPUT: images})[0]
    return found


def widths(model: onnx.ModelProto, images: Pixels) -> list[npt.NDArray[np.float32]]:
    """Return the largest absolute value by channel of each stream."""
    found = []
    for stream in streams(model):
        values = np.concatenate([np.stack(batch) for batch in observed(model, list(stream.tensors), [images])], axis=1)
        found.append(np.abs(values).max(axis=(0, 1, 3, 4)))
    return found


@pytest.mark.parametrize(("groups", "bias"), [(1, True), (3, False), (12, True)])
def test_a_sum_gets_channels_of_one_range_and_the_answers_stay(groups: int, bias: bool, images: Pixels) -> None:
    model = residual(groups, bias=bias)
    [stream] = streams(model)
    # Three convolutions and their two sums; those that add read it as well.
    assert (len(stream.tensors), len(stream.writers), len(stream.readers)) == (5, 3, 3)
    [before] = widths(model, images)
    made = equalized(model, [images[:16], images[16:]])
    [after] = widths(made, images)
    assert before.max() > 3 * before.min()
    np.testing.assert_allclose(after, before.max(), rtol=1e-3)
    np.testing.assert_allclose(logits(made, images), logits(model, images), atol=2e-5)


def test_a_network_of_timm_keeps_its_answers(images: Pixels) -> None:
    torch.manual_seed(0)
    model = build_learner_graph(Learner("test_efficientnet", len(CLASSES), 48).eval(), (SIZE, SIZE))
    assert len(streams(model)) > 2
    np.testing.assert_allclose(logits(equalized(model, [images]), images), logits(model, images), atol=1e-4)


def test_what_else_reads_or_writes_leaves_a_stream_alone(images: Pixels) -> None:
    for how in ({"activation": True}, {"shared": True}):
        model = residual(**how)
        assert streams(model) == []
        assert equalized(model, [images]) == model


def test_a_channel_that_is_always_zero_stays_finite(images: Pixels) -> None:
    torch.manual_seed(0)
    network = Residual(1)
    with torch.no_grad():
        for layer in (network.stem, network.first, network.second):
            layer.weight[5] = 0
            layer.bias[5] = 0
    model = build_learner_graph(network.eval(), (SIZE, SIZE))  # type: ignore[arg-type]  # not a Learner
    np.testing.assert_allclose(logits(equalized(model, [images]), images), logits(model, images), atol=2e-5)
    black = np.zeros_like(images)
    assert np.isfinite(logits(equalized(model, [black]), images)).all()


def test_integers_err_less(images: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    model = residual()
    exact = logits(model, images)
    made = np.abs(logits(Quantizer(model, [images]).graph(), images) - exact).mean()
    monkeypatch.setattr("export.quantize.equalized", lambda graph, _: graph)
    assert made < 0.7 * np.abs(logits(Quantizer(model, [images]).graph(), images) - exact).mean()
