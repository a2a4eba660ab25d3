"""8-bit integers: what is quantised, what stays in float, and that the file answers as its learners do."""

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch

from export.cascade import Blend, Cascade
from export.cheaper import Wanted
from export.export import export
from export.fusion import fuse
from export.graph import build_learner_graph
from export.quantize import quantize
from export.validation import Voters
from serving.runtime import Model
from tailstack.errors import UserError
from tailstack.network import Learner
from tests.conftest import CLASSES, SIZE, SMALL_LEARNERS


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    noise = rng.normal(rng.uniform(30, 220, (48, 1, 1, 3)), rng.uniform(5, 90, (48, 1, 1, 3)), (48, SIZE, SIZE, 3))
    return noise.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def learners() -> list[onnx.ModelProto]:
    torch.manual_seed(0)
    networks = [Learner("test_efficientnet", len(CLASSES), 48), Learner("test_resnet", len(CLASSES), 40)]
    for network in networks:
        torch.nn.init.normal_(network.backbone.get_classifier().weight, std=0.3)
    return [build_learner_graph(network.eval(), (SIZE, SIZE)) for network in networks]


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_all_is_quantised_where_nothing_speaks_against_it(
    learners: list[onnx.ModelProto], images: npt.NDArray[np.uint8]
) -> None:
    found = quantize(learners, [images[:32], images[32:]], lambda _: [])
    assert found.kept == [[], []]
    for model, exact in zip(found.learners, learners, strict=True):
        fed = {name for node in model.graph.node if node.op_type == "Conv" for name in node.input[:2]}
        made = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
        assert fed <= made
        weights = [item for item in model.graph.initializer if item.data_type == onnx.TensorProto.INT8]
        assert any(len(item.dims) == 4 for item in weights)
        votes, expected = Voters([model]).vote(images), Voters([exact]).vote(images)
        assert 0 < np.abs(votes - expected).mean() < 0.05


def test_the_fewest_blocks_stay_in_float(learners: list[onnx.ModelProto], images: npt.NDArray[np.uint8]) -> None:
    most = sum(operators(model)["QuantizeLinear"] for model in quantize(learners, [images], lambda _: []).learners)

    def objections(models: list[onnx.ModelProto]) -> list[str]:
        count = sum(operators(model)["QuantizeLinear"] for model in models)
        return ["too much"] if count > most * 0.7 else []

    found = quantize(learners, [images], objections)
    assert objections(found.learners) == []
    kept = sum(map(len, found.kept))
    assert 1 <= kept <= 12  # of 23
    for model, blocks in zip(found.learners, found.kept, strict=True):
        floats = {item.name for item in model.graph.initializer if item.data_type == onnx.TensorProto.FLOAT}
        fed = {name for node in model.graph.node if node.op_type in ("Conv", "Gemm") for name in node.input}
        for block in blocks:
            assert any(name.startswith(f"{block}.") for name in floats & fed)


def test_when_no_integer_will_do(learners: list[onnx.ModelProto], images: npt.NDArray[np.uint8]) -> None:
    def objections(models: list[onnx.ModelProto]) -> list[str]:
        return ["wrong"] if any(operators(model)["QuantizeLinear"] for model in models) else []

    with pytest.raises(UserError, match="int8 costs more accuracy than --max_accuracy_drop"):
        quantize(learners, [images], objections)


@pytest.mark.parametrize("cascade", [None, Cascade((1, 0), (0.5,))])
def test_the_fused_graph_answers_as_its_learners_do(
    learners: list[onnx.ModelProto], images: npt.NDArray[np.uint8], cascade: Cascade | None
) -> None:
    quantized = quantize(learners, [images], lambda _: []).learners
    blend = Blend((0.4, 0.6), 1.25)
    model = fuse(quantized, blend, cascade, (SIZE, SIZE), len(CLASSES))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    voters = Voters(quantized)
    for batch in (0, 1, 3, 8, 33):
        part = images[:batch]
        votes = voters.vote(part)
        expected = cascade.run(votes, blend) if cascade else (blend.plain(votes), votes)
        for answer, wanted in zip(session.run(None, {"images": part}), expected, strict=True):
            assert answer.shape == wanted.shape
            np.testing.assert_allclose(answer, wanted, atol=1e-4)


def test_the_file_says_that_it_is_int8_and_serves(small_run: Path, tmp_path: Path) -> None:
    wanted = Wanted(cascade=True, precision="int8", max_accuracy_drop=80)
    artifact = export(small_run, tmp_path / "small.onnx", wanted)
    assert artifact.precision == "int8"
    assert artifact.cascade is not None
    assert artifact.evidence is not None
    model = Model.load(tmp_path / "small.onnx", max_batch=4)
    assert model.artifact == artifact
    assert model.classify(np.zeros((3, SIZE, SIZE, 3), np.uint8)).votes.shape == (3, len(SMALL_LEARNERS), len(CLASSES))
