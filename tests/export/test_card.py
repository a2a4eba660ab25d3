"""The model card: beside the file, with its pictures, and of the file's own figures."""

import re
from pathlib import Path

import onnx
import pytest
from PIL import Image

from export.card import card_text, write_card
from tailstack.artifact import Artifact, CascadeCard
from tailstack.files import sha256
from tests.conftest import CLASSES, TRAIN_COUNTS


@pytest.fixture(scope="module")
def artifact(tiny_model: Path) -> Artifact:
    return Artifact.from_properties({item.key: item.value for item in onnx.load(tiny_model).metadata_props}, tiny_model)


@pytest.fixture(scope="module")
def text(tiny_model: Path) -> str:
    return tiny_model.with_name("ensemble.onnx.MODEL_CARD.md").read_text()


def test_it_identifies_the_file_and_its_origin(text: str, tiny_model: Path, artifact: Artifact) -> None:
    assert f"| SHA-256 | `{sha256(tiny_model)}` |" in text
    origin = artifact.provenance
    for digest in (*origin["weights"].values(), origin["datastore"]["train"], origin["datastore"]["test"]):
        assert f"`{digest}`" in text
    assert f"{origin['machine']['cpu']}, {origin['machine']['cores']} cores" in text
    for learner in artifact.learners:
        assert f"| {learner.name} | {learner.architecture} | {learner.resolution} |" in text


def test_it_has_what_validation_found(text: str, artifact: Artifact) -> None:
    assert artifact.validation is not None
    assert artifact.calibration is not None
    assert f"| top-1 | {artifact.validation.figures['top1']:.4f} |" in text
    assert f"{artifact.calibration.ece_before:.4f} as the plain average" in text
    assert "coverages of 90%, 95%, 99%" in text
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| [\d.]+ \|$", text, re.MULTILINE)
    assert [(name, int(count)) for name, count, _ in rows] == list(zip(CLASSES, TRAIN_COUNTS, strict=True))
    assert sum(int(images) for _, _, images in rows) == 57


def test_its_pictures_are_there(text: str, tiny_model: Path) -> None:
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert pictures == ["ensemble.onnx.reliability.png", "ensemble.onnx.classes.png"]
    for name in pictures:
        with Image.open(tiny_model.with_name(name)) as picture:
            assert picture.format == "PNG"
            assert len(picture.convert("L").getcolors() or []) > 2


def test_it_shows_the_gate_of_a_cheaper_file(artifact: Artifact) -> None:
    plain = {"top1": 0.8, "balanced": 0.7, "many": 0.9, "medium": 0.6, "few": None, "ece": 0.02, "nll": 0.7}
    evidence = {
        "images": 57,
        "max_accuracy_drop": 1.5,
        "plain": plain,
        "this": {**plain, "top1": 0.79},
        "expected_drop": 0.25,
        "expected_drop_bound": 0.375,
        "learners_used": 1.25,
        "cost": {"1": {"plain_ms": 8.0, "ms": 2.0, "relative": 0.25}},
    }
    cascade = CascadeCard(order=[1, 0], thresholds=[0.875], temperatures=[1.5, 1.125])
    cheaper = artifact.model_copy(update={"evidence": evidence, "cascade": cascade, "precision": "int8"})
    text = card_text(Path("models/a.onnx"), "0" * 64, cheaper, [], ["a.png", "b.png"])
    for line in (
        "| top-1 | 0.8000 | 0.7900 | 1.5 points less, 90% sure |",
        "| few-shot | - | - | 1.5 points less, 90% sure |",
        "| calibration error (ECE) | 0.0200 | 0.0200 | 0.02 more, by image or by class |",
        "| loss that the plain ensemble expects, points | 0 | 0.25, at most 0.38 (90% sure) | 1.5 at most |",
        "| ms per image, one thread, batch 1 | 8.00 | 2.00 (0.25x) |  |",
        f"| cascade | {artifact.learners[1].name} → {artifact.learners[0].name}; on below 0.875 |",
        "| precision | int8 |",
    ):
        assert line in text
    assert "1.25 learners see an image" in text
    assert "temperatures 1.500, 1.125, by the number of learners" in text


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (None, "unknown"),
        ([1 / 6] * 6, "all classes alike; the input"),
        ([0.5, 0.3, 0.05, 0.05, 0.05, 0.05], "5.00% (square) to 50.00% (disc); the input"),
    ],
)
def test_it_says_for_which_mix_it_is_right(artifact: Artifact, prior: list[float] | None, words: str) -> None:
    text = card_text(Path("a.onnx"), "", artifact.model_copy(update={"prior": prior}), [], ["a.png", "b.png"])
    assert f"| right for the class mix | {words}" in text


def test_a_figure_of_zero_is_told(artifact: Artifact) -> None:
    none = artifact.model_copy(update={"accuracy": {**artifact.accuracy, "few": 0.0}})
    assert "few-shot 0.0000" in card_text(Path("a.onnx"), "", none, (), ["a.png", "b.png"])


def test_names_of_classes_do_not_break_the_table(artifact: Artifact) -> None:
    odd = {"label": "a|b", "train_images": 5, "test_images": 0, "accuracy": None, "precision": None}
    assert "| a\\|b | 5 | 0 | - |" in card_text(Path("a.onnx"), "", artifact, [odd], ["a.png", "b.png"])


def test_without_validation_it_says_so_and_two_files_do_not_share_it(artifact: Artifact, tmp_path: Path) -> None:
    bare = artifact.model_copy(update={"validation": None, "calibration": None, "prediction_sets": None})
    paths = []
    for name in ("model.a", "model.b"):
        (tmp_path / name).write_bytes(name.encode())
        paths.append(write_card(tmp_path / name, bare, (), ()))
        assert sha256(tmp_path / name) in paths[-1].read_text()
        assert "Nothing validated" in paths[-1].read_text()
    assert len(set(paths)) == 2
