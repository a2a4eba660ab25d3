"""8-bit integers: what is quantised, what stays in float, and that the file answers as its learners do."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch

from export.cascade import Cascade
from export.cheaper import Wanted
from export.export import export
from export.forms import FormMaker
from export.fusion import fuse
from export.graph import build_learner_graph
from export.quantize import Quantizer
from export.run_forms import RunForms
from export.validation import Voters
from serving.runtime import Model
from tailstack.blend import Blend
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


def test_all_is_quantised_where_nothing_is_kept(learners: list[onnx.ModelProto], images: npt.NDArray[np.uint8]) -> None:
    for exact in learners:
        model = Quantizer(exact, [images[:32], images[32:]]).graph()
        fed = {name for node in model.graph.node if node.op_type == "Conv" for name in node.input[:2]}
        made = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
        assert fed <= made
        weights = [item for item in model.graph.initializer if item.data_type == onnx.TensorProto.INT8]
        assert any(len(item.dims) == 4 for item in weights)
        votes, expected = Voters([model]).vote(images), Voters([exact]).vote(images)
        assert 0 < np.abs(votes - expected).mean() < 0.05


def test_pixels_are_normalised_a_row_at_a_time(learners: list[onnx.ModelProto]) -> None:
    for exact, resolution in zip(learners, (48, 40), strict=True):
        shapes = {item.name: list(item.dims) for item in exact.graph.initializer}
        normalising = [node for node in exact.graph.node if node.op_type in ("Sub", "Div")]
        assert len(normalising) == 2
        assert [shapes[node.input[1]] for node in normalising] == [[1, 3, 1, resolution]] * 2


def test_activations_are_unsigned_or_signed(learners: list[onnx.ModelProto], images: npt.NDArray[np.uint8]) -> None:
    quantizer = Quantizer(learners[0], [images])
    for signed, wanted in ((False, onnx.TensorProto.UINT8), (True, onnx.TensorProto.INT8)):
        model = quantizer.graph(signed=signed)
        types = {item.name: item.data_type for item in model.graph.initializer}
        zeros = {types[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
        assert zeros == {wanted}


def test_blocks_that_are_kept_stay_in_float(learners: list[onnx.ModelProto], images: npt.NDArray[np.uint8]) -> None:
    quantizer = Quantizer(learners[0], [images])
    kept = list(quantizer.blocks)[1:3]
    model = quantizer.graph(kept)
    floats = {item.name for item in model.graph.initializer if item.data_type == onnx.TensorProto.FLOAT}
    fed = {name for node in model.graph.node if node.op_type in ("Conv", "Gemm") for name in node.input}
    for block in quantizer.blocks:
        assert any(name.startswith(f"{block}.") for name in floats & fed) == (block in kept)
    assert quantizer.graph(list(quantizer.blocks)) == learners[0]


def test_blocks_are_ranked_by_the_error_that_each_makes_alone(
    learners: list[onnx.ModelProto], images: npt.NDArray[np.uint8]
) -> None:
    quantizer = Quantizer(learners[1], [images])
    ranked = quantizer.ranked(images)
    assert sorted(ranked) == sorted(quantizer.blocks)
    exact = Voters([learners[1]]).vote(images)
    errors = [
        np.abs(Voters([quantizer.graph([name for name in ranked if name != block])]).vote(images) - exact).mean()
        for block in ranked
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1.2 * errors[-1]


@pytest.mark.parametrize("cascade", [None, Cascade((1, 0), (0.5,))])
def test_the_fused_graph_answers_as_its_learners_do(
    learners: list[onnx.ModelProto], images: npt.NDArray[np.uint8], cascade: Cascade | None
) -> None:
    quantized = [Quantizer(model, [images]).graph() for model in learners]
    blend = Blend((0.4, 0.6), 1.25)
    model = fuse(quantized, blend, cascade, (SIZE, SIZE), len(CLASSES))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    voters = Voters(quantized)
    for batch in (0, 1, 3, 8, 33):
        part = images[:batch]
        votes = voters.vote(part)
        expected = cascade.run(votes, blend) if cascade else (blend.apply(votes), votes)
        for answer, wanted in zip(session.run(None, {"images": part}), expected, strict=True):
            assert answer.shape == wanted.shape
            np.testing.assert_allclose(answer, wanted, atol=1e-4)


def pretend_costs(integers: float) -> Callable[[FormMaker, Sequence[onnx.ModelProto]], list[float]]:
    """Return a stand-in for the clock, which knows only whether there are integers in a graph."""

    def costs(_: FormMaker, models: Sequence[onnx.ModelProto]) -> list[float]:
        times = [integers if operators(model)["QuantizeLinear"] else 1.0 for model in models]
        return [time / times[0] for time in times]

    return costs


def test_the_file_says_that_it_is_int8_and_serves(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FormMaker, "costs", pretend_costs(0.5))
    wanted = Wanted(cascade=True, precision="int8", max_accuracy_drop=80)
    artifact = export(small_run, tmp_path / "small.onnx", wanted)
    assert artifact.precision == "int8"
    assert artifact.cascade is not None
    assert artifact.evidence is not None
    assert artifact.evidence["without_int8"] == 2
    said = capsys.readouterr().out
    assert "With int8: the best graph without it takes 2.00 times as long" in said
    assert f", the plain ensemble's top-1 {artifact.accuracy['top1']:.4f} on test\n" in said
    forms = list(artifact.evidence["forms"].values())
    assert any("unsigned activations, 0 block(s) in float" in text for text in forms)
    for card, text in zip(artifact.learners, forms, strict=True):
        assert f" at {card.resolution} pixels" in text
    model = Model.load(tmp_path / "small.onnx", max_batch=4)
    assert model.artifact == artifact
    assert model.classify(np.zeros((3, SIZE, SIZE, 3), np.uint8)).votes.shape == (3, len(SMALL_LEARNERS), len(CLASSES))


def test_files_of_one_run_share_its_forms(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FormMaker, "costs", pretend_costs(0.5))
    shared = RunForms.load(small_run)
    made: list[str] = []
    for name in ("in_float", "smaller", "in_integers"):
        method = getattr(FormMaker, name)

        def counted(*arguments: Any, name: str = name, method: Callable[..., Any] = method) -> Any:
            made.append(name)
            return method(*arguments)

        monkeypatch.setattr(FormMaker, name, counted)
    answers = {}
    for forms in (shared, shared, None):
        for cascade in (False, True):
            made.clear()
            path = tmp_path / f"{len(answers)}.onnx"
            export(small_run, path, Wanted(cascade, "int8", max_accuracy_drop=80), forms=forms)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            images = np.arange(3 * SIZE * SIZE * 3, dtype=np.uint8).reshape(3, SIZE, SIZE, 3)
            answers[len(answers)] = (session.run(["probabilities"], {"images": images})[0], list(made))
    # The second of a kind made nothing anew, and is what one without help is.
    assert [bool(names) for _, names in answers.values()] == [True, True, False, False, True, True]
    for cascade in (0, 1):
        np.testing.assert_array_equal(answers[2 + cascade][0], answers[4 + cascade][0])


def test_where_integers_are_slower_there_are_none(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FormMaker, "costs", pretend_costs(1.5))
    artifact = export(small_run, tmp_path / "small.onnx", Wanted(precision="int8", max_accuracy_drop=80))
    assert artifact.precision == "fp32"
    assert artifact.evidence is not None
    assert artifact.evidence["without_int8"] is None
    assert artifact.evidence["this"]["top1"] == artifact.evidence["plain"]["top1"]
    assert "Without int8: it is slower here" in capsys.readouterr().out
