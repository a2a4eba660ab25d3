"""A run's record survives the way to the disk, and a folder that holds none is told apart from one unfinished."""

import json
from pathlib import Path
from typing import Any

import pytest

from tailstack.errors import UserError
from tailstack.run import CONFIG_FILE, ENSEMBLE_FILE, LearnerRecord, RunRecord, learner_folder


def record() -> RunRecord:
    learner = LearnerRecord(
        name="0-resnet18",
        architecture="resnet18",
        resolution=96,
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
        parameters=11_000_000,
        loss="isns",
        train_images=5,
        results={"top1": 0.1 + 0.2, "few": None},
    )
    return RunRecord(
        technique="stacking-wl",
        classes=["chat", "été"],
        class_counts=[3, 2],
        image_size=(32, 48),
        learners=[learner],
        weights=[1.0],
        temperature=1.0,
        results={"top1": 0.5, "many": None},
        average_learner={"top1": 0.5},
        datastore={"path": "data/a", "train": "0" * 64},
        config={"lr": 1e-3, "output": "runs/a"},
        versions={"torch": "2"},
        seconds=12.5,
    )


def refused(run: Path) -> str:
    with pytest.raises(UserError) as caught:
        RunRecord.load(run)
    return str(caught.value)


def test_round_trip(tmp_path: Path) -> None:
    record().save(tmp_path)
    assert RunRecord.load(tmp_path) == record()
    assert [path.name for path in tmp_path.iterdir()] == [ENSEMBLE_FILE]


def test_learners_have_a_folder_each(tmp_path: Path) -> None:
    assert learner_folder(tmp_path, "0-resnet18") == tmp_path / "learners" / "0-resnet18"


def test_no_run(tmp_path: Path) -> None:
    message = refused(tmp_path / "none")
    assert "doesn't exist" in message
    assert "python -m training fit" in message


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    assert f"is not a run: no {CONFIG_FILE}" in refused(tmp_path)


def test_an_unfinished_run_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text("technique: stacking\n")
    assert f"isn't finished; go on with: python -m training fit --config {tmp_path / CONFIG_FILE}" in refused(tmp_path)


@pytest.mark.parametrize("change", [{"weights": "all"}, {"image_size": [32]}, {"of_the_future": 1}, {"learners": None}])
def test_a_record_of_another_form(tmp_path: Path, change: dict[str, Any]) -> None:
    record().save(tmp_path)
    path = tmp_path / ENSEMBLE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    message = refused(tmp_path)
    assert f"{ENSEMBLE_FILE} is not of this version's form" in message
    assert next(iter(change)) in message


def test_a_record_that_is_cut_short(tmp_path: Path) -> None:
    record().save(tmp_path)
    path = tmp_path / ENSEMBLE_FILE
    path.write_text(path.read_text()[:100])
    assert f"{ENSEMBLE_FILE} isn't readable JSON" in refused(tmp_path)
