"""What a file says about itself survives the way through ONNX's metadata."""

import json
from typing import Any

import pytest

from tailstack.artifact import FORMAT, Artifact, LearnerCard
from tailstack.errors import UserError


def artifact(**changes: Any) -> Artifact:
    card = LearnerCard(
        name="0-resnet18", architecture="resnet18", resolution=96, parameters=11_000_000, weight=1.0, top1=0.5
    )
    values: dict[str, Any] = {
        "format": FORMAT,
        "name": "ensemble",
        "technique": "stacking",
        "classes": ["chat", "été", '"quoted"\n'],
        "class_counts": [3, 2, 1],
        "image_size": (32, 48),
        "preprocessing": "decode",
        "learners": [card],
        "temperature": 1.25,
        "accuracy": {"top1": 0.1 + 0.2, "few": None},
        "parity": {"1": 2.4e-6},
        "provenance": {"run": "runs/a", "config": {"lr": 1e-3}},
    }
    return Artifact.model_validate({**values, **changes})


def test_round_trip() -> None:
    original = artifact()
    properties = original.to_properties()
    assert all(isinstance(value, str) for value in properties.values())
    assert set(properties) == {f"tailstack.{name}" for name in Artifact.model_fields}
    assert Artifact.from_properties({**properties, "another.tool": "x"}, "a.onnx") == original


def test_a_file_of_format_1_still_reads() -> None:
    properties = {**artifact().to_properties(), "tailstack.format": "1"}
    for added in ("precision", "cascade", "evidence"):
        del properties[f"tailstack.{added}"]
    old = Artifact.from_properties(properties, "a.onnx")
    assert (old.format, old.precision, old.cascade, old.evidence) == (1, "fp32", None, None)


def test_any_language_can_read_the_values() -> None:
    properties = artifact().to_properties()
    assert json.loads(properties["tailstack.classes"]) == ["chat", "été", '"quoted"\n']
    assert json.loads(properties["tailstack.image_size"]) == [32, 48]


def test_a_file_of_another_tool() -> None:
    with pytest.raises(UserError, match=r"a\.onnx is not a Tailstack model.*python -m export"):
        Artifact.from_properties({"names": "{0: 'cat'}"}, "a.onnx")


def test_a_newer_format_asks_for_an_update() -> None:
    properties = {**artifact().to_properties(), "tailstack.format": str(FORMAT + 1), "tailstack.unknown": "1"}
    with pytest.raises(UserError, match="update Tailstack"):
        Artifact.from_properties(properties, "a.onnx")


@pytest.mark.parametrize(
    "change",
    [
        {"tailstack.classes": "["},
        {"tailstack.classes": "3"},
        {"tailstack.format": '"new"'},
        {"tailstack.unknown": "1"},
        {"tailstack.temperature": "null"},
    ],
)
def test_damaged_metadata(change: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"a\.onnx has damaged"):
        Artifact.from_properties({**artifact().to_properties(), **change}, "a.onnx")


def test_missing_metadata() -> None:
    properties = artifact().to_properties()
    del properties["tailstack.format"]
    with pytest.raises(UserError, match="damaged"):
        Artifact.from_properties(properties, "a.onnx")
