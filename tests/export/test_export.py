"""The exported file: what it contains, and what it answers."""

import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch

from export import parity
from export.export import export
from export.graph import build_graph
from export.prediction_sets import calibrate
from export.validation import file_answers, run_splits
from tailstack import datastore as datastores
from tailstack.artifact import INPUT, LEARNER_PROBABILITIES, PROBABILITIES, Artifact
from tailstack.errors import UserError
from tailstack.files import read_json, sha256, write_json
from tailstack.metrics import class_balanced, evaluate, expected_calibration_error
from tailstack.network import load_ensemble
from tailstack.run import ENSEMBLE_FILE, SPLIT_FILE, WEIGHTS_FILE, RunRecord, learner_folder
from tailstack.signature import check_signature
from tests.conftest import CLASSES, LEARNERS, ROOT, SIZE, TRAIN_COUNTS
from tests.export.runs import copied, edit
from tests.keys import key_pair

Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def session(tiny_model: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def artifact(session: onnxruntime.InferenceSession) -> Artifact:
    return Artifact.from_properties(session.get_modelmeta().custom_metadata_map, "the file")


@pytest.fixture(scope="module")
def test_images(tiny_datastore: Path) -> npt.NDArray[np.uint8]:
    test = datastores.load(tiny_datastore).test
    return np.stack([test.decode(i) for i in range(len(test))])


def answer(session: onnxruntime.InferenceSession, images: npt.NDArray[np.uint8]) -> tuple[Array, Array]:
    probabilities, votes = session.run([PROBABILITIES, LEARNER_PROBABILITIES], {INPUT: images})
    return probabilities, votes


def test_inputs_and_outputs_are_the_contract(session: onnxruntime.InferenceSession) -> None:
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [SIZE, SIZE, 3])
    assert isinstance(images.shape[0], str)
    outputs = {output.name: (output.type, output.shape[1:]) for output in session.get_outputs()}
    assert outputs == {
        "probabilities": ("tensor(float)", [len(CLASSES)]),
        "learner_probabilities": ("tensor(float)", [len(LEARNERS), len(CLASSES)]),
    }


def test_one_standard_file_without_traces_of_where_it_was_made(tiny_model: Path, tiny_run: Path) -> None:
    assert sorted(path.name for path in tiny_model.parent.iterdir()) == [
        "ensemble.onnx",
        *(f"ensemble.onnx.{ending}" for ending in ("MODEL_CARD.md", "classes.png", "reliability.png", "sha256")),
    ]
    onnx.checker.check_model(str(tiny_model), full_check=True)
    model = onnx.load(tiny_model)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert not model.functions
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    del model.metadata_props[:]  # its provenance names the run and the datastore
    for weights in model.graph.initializer:
        weights.ClearField("raw_data")  # among millions of random bytes some may spell `.py`
    content = model.SerializeToString()
    for trace in (b".py", b"site-packages", b'File "', str(ROOT).encode(), str(tiny_run).encode()):
        assert trace not in content


def test_the_sidecar_is_what_sha256sum_checks(tiny_model: Path) -> None:
    sidecar = tiny_model.with_name("ensemble.onnx.sha256")
    assert sidecar.read_text() == f"{sha256(tiny_model)}  ensemble.onnx\n"
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", sidecar.name], cwd=tiny_model.parent, check=True, capture_output=True)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7, 8, 17, 48])
def test_answers_are_torchs_at_any_batch_size(
    session: onnxruntime.InferenceSession,
    artifact: Artifact,
    tiny_run: Path,
    test_images: npt.NDArray[np.uint8],
    batch: int,
) -> None:
    record = RunRecord.load(tiny_run)
    ensemble = load_ensemble(tiny_run, record.model_copy(update={"temperature": artifact.temperature}))
    images = test_images[:batch]
    with torch.inference_mode():
        expected = [output.numpy() for output in ensemble(torch.from_numpy(images))]
    probabilities, votes = answer(session, images)
    assert np.abs(probabilities - expected[0]).max() <= 1e-4
    assert np.abs(votes - expected[1]).max() <= 1e-4
    assert np.array_equal(probabilities.argmax(axis=1), expected[0].argmax(axis=1))


def test_an_empty_batch_gives_an_empty_answer(session: onnxruntime.InferenceSession) -> None:
    probabilities, votes = answer(session, np.zeros((0, SIZE, SIZE, 3), np.uint8))
    assert probabilities.shape == (0, len(CLASSES))
    assert votes.shape == (0, len(LEARNERS), len(CLASSES))


def test_an_image_gets_the_same_answer_in_any_company(
    session: onnxruntime.InferenceSession, test_images: npt.NDArray[np.uint8]
) -> None:
    together, _ = answer(session, test_images)
    alone = np.concatenate([answer(session, test_images[i : i + 1])[0] for i in range(len(test_images))])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_answers_are_distributions_that_differ_between_images_and_learners(
    session: onnxruntime.InferenceSession, artifact: Artifact, test_images: npt.NDArray[np.uint8]
) -> None:
    probabilities, votes = answer(session, test_images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    # Weighted by 0.6 and 0.4, then made flatter by the temperature.
    flatter = np.einsum("ilc,l->ic", votes, [0.6, 0.4]) ** (1 / artifact.temperature)
    np.testing.assert_allclose(flatter / flatter.sum(axis=1, keepdims=True), probabilities, atol=1e-5)
    assert np.ptp(probabilities, axis=0).max() > 0.05
    assert np.abs(votes[:, 0] - votes[:, 1]).max() > 0.05


def test_black_and_white_images_are_answered(session: onnxruntime.InferenceSession) -> None:
    for value in (0, 255):
        probabilities, _ = answer(session, np.full((2, SIZE, SIZE, 3), value, np.uint8))
        assert np.isfinite(probabilities).all()


def test_the_file_describes_itself(tiny_model: Path, tiny_run: Path, session: onnxruntime.InferenceSession) -> None:
    artifact = Artifact.from_properties(session.get_modelmeta().custom_metadata_map, tiny_model)
    record = RunRecord.load(tiny_run)
    assert artifact.name == "ensemble"
    assert artifact.classes == CLASSES
    assert artifact.class_counts == TRAIN_COUNTS
    assert artifact.image_size == (SIZE, SIZE)
    assert [(card.architecture, card.resolution, card.weight) for card in artifact.learners] == [
        (architecture, resolution, weight)
        for (architecture, resolution), weight in zip(LEARNERS, (0.6, 0.4), strict=True)
    ]
    assert artifact.accuracy == record.results
    assert set(artifact.parity) == {"1", "3", "8"}
    assert all(0 <= difference <= 1e-4 for difference in artifact.parity.values())
    provenance = artifact.provenance
    assert provenance["run"] == str(tiny_run)
    assert provenance["config"] == record.config
    assert provenance["datastore"] == record.datastore
    assert provenance["weights"] == {
        learner.name: sha256(learner_folder(tiny_run, learner.name) / WEIGHTS_FILE) for learner in record.learners
    }
    assert {"torch", "onnx", "onnxruntime"} <= set(provenance["versions"])
    assert abs((datetime.now(UTC) - datetime.fromisoformat(provenance["exported"])).total_seconds()) < 3600


def test_the_command_shows_steps_and_keeps_the_exporters_talk_to_itself(tiny_export: tuple[Path, list[str]]) -> None:
    output, lines = tiny_export
    assert len(lines) == 6
    assert lines[0].startswith("Fusing 2 learner(s)")
    assert lines[4] == f"Its card: {output}.MODEL_CARD.md"
    assert re.search(r"largest difference from torch \d\.\de-\d+ \(limit 0\.0001\), top-1 0\.\d{4} on test$", lines[3])
    assert lines[5] == f"Next: TAILSTACK_MODEL={output} bentoml serve"


def test_learners_too_large_for_one_file_are_refused_before_anything_is_made(tiny_run: Path, tmp_path: Path) -> None:
    run = copied(tiny_run, tmp_path)
    learners = read_json(run / ENSEMBLE_FILE)["learners"]
    edit(run, learners=[{**learner, "parameters": 300_000_000} for learner in learners])
    with pytest.raises(UserError, match=r"the learners have 2\.4 GB of weights, and one file of ONNX holds 2 GB"):
        export(run, tmp_path / "large.onnx")


def test_the_gate_refuses_another_label_and_nan(
    tiny_model: Path, test_images: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shifted(torch.nn.Module):
        """Answers as the file does, but for `change`."""

        def __init__(self, change: float) -> None:
            super().__init__()
            self.change = change
            self.session = parity.open_session(tiny_model)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = answer(self.session, images.numpy())
            return torch.from_numpy(outputs[0] + np.float32(self.change)), torch.from_numpy(outputs[1])

    assert parity.verify_parity(tiny_model, Shifted(0.0), test_images) == {"1": 0.0, "3": 0.0, "8": 0.0}
    assert max(parity.verify_parity(tiny_model, Shifted(5e-5), test_images).values()) <= 1e-4
    for change in (2e-4, float("nan")):
        with pytest.raises(UserError, match="doesn't answer as torch does"):
            parity.verify_parity(tiny_model, Shifted(change), test_images)
    # So small a difference that only the label can tell.
    monkeypatch.setattr(np, "array_equal", lambda *_: False)
    with pytest.raises(UserError, match="top-1 different"):
        parity.verify_parity(tiny_model, Shifted(0.0), test_images)


@pytest.fixture(scope="module")
def graph(tiny_run: Path) -> bytes:
    """The fused graph, which takes long to build, before anything is added to it."""
    record = RunRecord.load(tiny_run)
    return build_graph(load_ensemble(tiny_run, record), record.image_size).SerializeToString()


def test_exporting_again_replaces_file_and_sidecar(
    tiny_run: Path, graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(export.__globals__, "build_graph", lambda *_: onnx.ModelProto.FromString(graph))
    (tmp_path / "b.onnx").write_text("old")
    (tmp_path / "b.onnx.sha256").write_text("old")
    (tmp_path / "b.onnx.sig").write_text("old")
    assert export(tiny_run, tmp_path / "b.onnx").name == "b"
    assert (tmp_path / "b.onnx.sha256").read_text() == f"{sha256(tmp_path / 'b.onnx')}  b.onnx\n"
    assert not (tmp_path / "b.onnx.sig").exists()


def test_a_key_signs_the_file(
    tiny_run: Path,
    graph: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(export.__globals__, "build_graph", lambda *_: onnx.ModelProto.FromString(graph))
    private, public = key_pair(tmp_path)
    file = tmp_path / "b.onnx"
    export(tiny_run, file, private_key=private)
    check_signature(file, file.read_bytes(), public)
    assert f"Its signature: {file}.sig" in capsys.readouterr().out
    with pytest.raises(UserError, match="no key of an elliptic curve"):
        export(tiny_run, tmp_path / "c.onnx", private_key=file)
    assert not (tmp_path / "c.onnx").exists()


def test_a_file_carries_its_calibration_and_prediction_sets(
    session: onnxruntime.InferenceSession, tiny_model: Path, tiny_run: Path
) -> None:
    artifact = Artifact.from_properties(session.get_modelmeta().custom_metadata_map, tiny_model)
    record = RunRecord.load(tiny_run)
    _, validation = run_splits(tiny_run, datastores.load(Path(record.datastore["path"])))
    answers, votes = file_answers(tiny_model, validation, record.image_size, "")
    expected = calibrate(answers, validation.labels, np.array(record.class_counts))
    assert artifact.prediction_sets is not None
    for coverage, thresholds in expected.thresholds.items():
        assert artifact.prediction_sets.thresholds[coverage] == pytest.approx(thresholds, abs=1e-6)
    calibration = artifact.calibration
    assert calibration is not None
    weights = class_balanced(validation.labels, record.prior)
    for found, values in ((calibration.ece_after, answers), (calibration.ece_before, votes.mean(axis=1))):
        assert found == pytest.approx(expected_calibration_error(values, validation.labels, weights=weights))


def test_a_file_names_the_images_that_validate_and_what_it_answers_there(
    artifact: Artifact, tiny_model: Path, tiny_run: Path
) -> None:
    record = RunRecord.load(tiny_run)
    card = artifact.validation
    assert card is not None
    assert (card.split, card.indices) == ("train", read_json(tiny_run / SPLIT_FILE)["val"])
    validation = datastores.load(Path(record.datastore["path"])).train.subset(np.array(card.indices))
    answers, _ = file_answers(tiny_model, validation, record.image_size, "")
    figures = dict(evaluate(answers, validation.labels, record.classes, np.array(record.class_counts)))
    assert card.figures == pytest.approx({name: figures[name] for name in card.figures}, abs=1e-6)
    assert {"top1", "few", "ece"} <= set(card.figures)


def test_a_run_that_is_badly_calibrated_is_mended(
    small_run: Path, tmp_path: Path, test_images: npt.NDArray[np.uint8]
) -> None:
    run = copied(small_run, tmp_path)
    edit(run, temperature=0.1)
    made = export(run, tmp_path / "a.onnx")
    assert made.calibration is not None
    assert made.temperature > 0.2
    mended = load_ensemble(run, RunRecord.load(run).model_copy(update={"temperature": made.temperature}))
    with torch.inference_mode():
        expected = mended(torch.from_numpy(test_images))[0].numpy()
    found, _ = answer(onnxruntime.InferenceSession(tmp_path / "a.onnx"), test_images)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_run_without_validation_has_no_prediction_sets(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    split = read_json(run / SPLIT_FILE)
    write_json(run / SPLIT_FILE, {**split, "train": split["train"] + split["val"], "val": []})
    artifact = export(run, tmp_path / "ensemble.onnx")
    assert (artifact.prediction_sets, artifact.calibration) == (None, None)
    assert "Without calibration and prediction sets" in capsys.readouterr().out
