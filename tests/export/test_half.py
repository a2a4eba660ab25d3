"""16-bit floats: what is halved, what stays in fp32, and that the file answers as its learners do."""

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import load_file, save_file

from export.cascade import Cascade
from export.cheaper import Wanted
from export.export import evidence_line, export
from export.fusion import fuse
from export.graph import LOGITS, build_learner_graph, is_weighted
from export.half import halve
from export.validation import Voters
from serving.runtime import Model
from tailstack.artifact import PROBABILITIES
from tailstack.blend import Blend
from tailstack.engine import open_engine
from tailstack.errors import UserError
from tailstack.network import Learner
from tailstack.run import WEIGHTS_FILE
from tests.conftest import CLASSES, SIZE, SMALL_LEARNERS


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    noise = rng.normal(rng.uniform(30, 220, (33, 1, 1, 3)), rng.uniform(5, 90, (33, 1, 1, 3)), (33, SIZE, SIZE, 3))
    return noise.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def learners() -> list[onnx.ModelProto]:
    torch.manual_seed(0)
    networks = [
        Learner("test_efficientnet", len(CLASSES), 48, head="cosine"),
        Learner("test_convnext", len(CLASSES), 32),
    ]
    torch.nn.init.normal_(networks[1].backbone.get_classifier().weight, std=0.3)
    return [build_learner_graph(network.eval(), (SIZE, SIZE)) for network in networks]


def run(model: onnx.ModelProto, images: npt.NDArray[np.uint8], output: str) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (answer,) = session.run([output], {"images": images})
    return np.asarray(answer)


def test_weights_are_halved_and_neither_pixels_nor_logits_are(
    learners: list[onnx.ModelProto], images: npt.NDArray[np.uint8]
) -> None:
    for exact in learners:
        before = exact.SerializeToString()
        half = halve(exact)
        assert exact.SerializeToString() == before
        onnx.checker.check_model(half, full_check=True)
        assert len(half.SerializeToString()) < 0.55 * len(before)
        types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
        weighted = [node for node in half.graph.node if is_weighted(node)]
        of_weights = [types[name] for node in weighted for name in node.input if name in types]
        assert set(of_weights[:-2]) == {TensorProto.FLOAT16}
        assert types[weighted[-1].input[1]] == TensorProto.FLOAT
        normalising = next(node for node in half.graph.node if node.op_type == "Sub")
        assert types[normalising.input[1]] == TensorProto.FLOAT
        # The pixels reach the first layer as they do in fp32, and are rounded there.
        (entry,) = [
            node for node in half.graph.node if node.op_type == "Cast" and node.output == [weighted[0].input[0]]
        ]
        for model in (exact, half):
            model.graph.output.append(onnx.helper.make_tensor_value_info(entry.input[0], TensorProto.FLOAT, None))
        np.testing.assert_array_equal(run(half, images, entry.input[0]), run(exact, images, entry.input[0]))
        del exact.graph.output[1:]
        assert run(half, images, LOGITS).dtype == np.float32
        assert 0 < np.abs(Voters([half]).vote(images) - Voters([exact]).vote(images)).max() < 5e-3


TOY = """
<ir_version: 10, opset_import: ["" : 18]>
toy (uint8[N, 4, 4, 3] images) => (float[N, 2] logits)
<float two = {2.0}, float[4] scales = {1.0, 1.0, 2.0, 2.0},
 float[3, 3, 1, 1] first = {1.0, 0.5, 0.25, 0.5, 1.0, 0.5, 0.25, 0.5, 1.0},
 float[3, 2] last = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}>
{
  pixels = Cast <to = 1> (images)
  nchw = Transpose <perm = [0, 3, 1, 2]> (pixels)
  scaled = Div (nchw, two)
  made = Conv (scaled, first)
  larger = Resize <mode = "nearest"> (made, , scales)
  positive = Greater (larger, two)
  mask = Cast <to = 1> (positive)
  half_of = Constant <value = float {0.5}> ()
  kept = Mul (mask, half_of)
  summed = Add (larger, kept)
  again = Add (summed, two)
  pooled = GlobalAveragePool (again)
  features = Flatten (pooled)
  scores = MatMul (features, last)
  logits = Div (scores, two)
}
"""
"""A constant that both precisions read, one that must stay as it is, and nodes whose attributes say float."""


def test_constants_and_attributes_of_either_side() -> None:
    toy = onnx.parser.parse_model(TOY)
    images = np.random.default_rng(0).integers(0, 9, (3, 4, 4, 3), dtype=np.uint8)
    half = halve(toy)
    onnx.checker.check_model(half, full_check=True)
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert (types["two"], types["two/float16"], types["scales"]) == (
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.FLOAT,
    )
    assert "first" not in types
    np.testing.assert_allclose(run(half, images, LOGITS), run(toy, images, LOGITS), rtol=2e-3)


@pytest.mark.parametrize("cascade", [None, Cascade((1, 0), (0.5,))])
def test_the_fused_graph_answers_as_its_learners_do(
    learners: list[onnx.ModelProto], images: npt.NDArray[np.uint8], cascade: Cascade | None
) -> None:
    halved = [halve(model) for model in learners]
    blend = Blend((0.4, 0.6), 1.25)
    model = fuse(halved, blend, cascade, (SIZE, SIZE), len(CLASSES))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (0, 1, 3, 8, 33):
        part = images[:batch]
        votes = Voters(halved).vote(part)
        expected = cascade.run(votes, blend) if cascade else (blend.apply(votes), votes)
        for answer, wanted in zip(session.run(None, {"images": part}), expected, strict=True):
            assert answer.shape == wanted.shape
            assert answer.dtype == wanted.dtype
            np.testing.assert_allclose(answer, wanted, atol=1e-4)


def test_the_file_says_that_it_is_fp16_and_serves(small_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.onnx"
    artifact = export(small_run, output, Wanted(cascade=True, precision="fp16", max_accuracy_drop=80))
    assert artifact.precision == "fp16"
    assert artifact.cascade is not None
    assert artifact.evidence is not None
    # A CPU can't say what it costs on a GPU.
    assert artifact.evidence["cost"] == {}
    assert "cost not measured: fp16 is for GPUs" in evidence_line(artifact.evidence)
    model = Model.load(output, max_batch=4)
    assert model.artifact == artifact
    pixels = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    answers = model.classify(pixels)
    assert answers.votes.shape == (3, len(SMALL_LEARNERS), len(CLASSES))
    others = open_engine(output, "openvino").run(pixels, [PROBABILITIES])
    np.testing.assert_allclose(others[0], answers.probabilities, atol=0.02)


def test_a_network_whose_numbers_are_too_large_is_refused(small_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    path = run / "learners" / "1-test_resnet" / WEIGHTS_FILE
    weights = load_file(path)
    # The next layer takes it back: in fp32 nothing changes.
    weights["backbone.layer1.0.bn1.weight"] *= 1e6
    weights["backbone.layer1.0.bn1.bias"] *= 1e6
    weights["backbone.layer1.0.conv2.weight"] /= 1e6
    save_file(weights, path)
    with pytest.raises(UserError, match="in fp16 a learner's vote changes by"):
        export(run, tmp_path / "large.onnx", Wanted(precision="fp16", max_accuracy_drop=80))
    assert not (tmp_path / "large.onnx").exists()
