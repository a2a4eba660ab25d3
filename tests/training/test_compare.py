"""A comparison: its cells, what they share, and what a kill in the middle of one costs."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from tailstack.errors import UserError
from tailstack.files import read_json, write_json
from tailstack.run import WEIGHTS_FILE
from training import compare as module
from training.cells import load_cells
from training.compare import compare
from training.learner import CHECKPOINT, train_learner
from training.settings import CompareSettings, FitSettings

ROOT = Path(__file__).parents[2]
TECHNIQUES = ["baseline", "stacking", "stacking-wl"]
TINY: dict[str, Any] = {
    "architectures": ["lcnet_035", "mobilenetv3_small_050"],
    "pretrained": False,
    "resolution": 32,
    "epochs": 2,
    "batch_size": 64,
    "num_workers": 0,
}


def run_compare(
    datastore: Path, folder: Path, techniques: list[str], changes: dict[str, Any] | None = None, **values: Any
) -> Path:
    settings = CompareSettings(
        output=folder / "results", runs=folder / "runs", datastores=[datastore], techniques=techniques, **values
    )
    return compare(settings, FitSettings(datastore=datastore, output=folder / "unused", **{**TINY, **(changes or {})}))


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results" / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder: Path) -> dict[str, bytes]:
    paths = sorted((folder / "runs").rglob(WEIGHTS_FILE))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def whole(tiny_datastore: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    run_compare(tiny_datastore, folder, TECHNIQUES)
    return folder


def test_the_cells_say_what_was_measured(whole: Path, tiny_datastore: Path) -> None:
    cells = load_cells(whole / "results")
    assert [cell.technique for cell in cells] == TECHNIQUES
    assert {(cell.datastore, cell.ratio, cell.seed) for cell in cells} == {(tiny_datastore.name, 0.0333, 0)}
    for cell in cells:
        assert set(cell.curves) == {learner.name for learner in cell.run.learners}
        assert [row["epoch"] for rows in cell.curves.values() for row in rows] == [1, 2] * len(cell.curves)
        assert sum(map(sum, cell.run.confusion or [])) == 48
        assert len(cell.run.per_class) == 6
        assert 0 <= cell.run.validation["balanced"] <= 1
    assert [row["technique"] for row in table(whole)] == TECHNIQUES


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the learners that are trained from now on."""
    names: list[str] = []

    def noting(learner: Any, plan: Any, *rest: Any) -> None:
        names.append(plan.name)
        train_learner(learner, plan, *rest)

    monkeypatch.setattr("training.task.train_learner", noting)
    return names


def test_a_learner_that_techniques_share_is_trained_once(
    tiny_datastore: Path, tmp_path: Path, trained: list[str]
) -> None:
    run_compare(tiny_datastore, tmp_path, ["baseline", "stacking"])
    assert trained == ["0-lcnet_035", "1-mobilenetv3_small_050"]
    # What is there already isn't made again; a new seed shares nothing.
    run_compare(tiny_datastore, tmp_path, ["baseline"], seeds=[0, 1])
    assert trained[2:] == ["0-lcnet_035"]
    seeds = {(cell.technique, cell.seed) for cell in load_cells(tmp_path / "results")}
    assert seeds == {("baseline", 0), ("stacking", 0), ("baseline", 1)}
    by_seed = [(tmp_path / "runs").glob(f"*baseline--seed{k}/learners/*/{WEIGHTS_FILE}") for k in (0, 1)]
    first, second = (next(paths).read_bytes() for paths in by_seed)
    assert first != second


@pytest.fixture
def done(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a comparison that is done; more of it can't be trained."""
    shutil.copytree(whole / "results", tmp_path / "done" / "results")
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("it trains"))
    return tmp_path / "done"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 3}, r"baseline--seed0: epochs 2 there, 3 now"),
        (
            {"architectures": ["lcnet_035"], "resolution": 48},
            r"architectures \[.*\] there, .* now; resolution 32 there",
        ),
        ({"second_cycle": 1}, "second_cycle None there, 1 now"),
    ],
)
def test_cells_of_other_settings_are_refused(
    done: Path, tiny_datastore: Path, changes: dict[str, Any], says: str
) -> None:
    for path in (done / "results" / "cells").glob("*.json"):
        cell = read_json(path)
        del cell["run"]["config"]["second_cycle"]  # as in one of an earlier version
        write_json(path, cell)
    run_compare(tiny_datastore, done, TECHNIQUES, {"num_workers": 1})
    with pytest.raises(UserError, match=says):
        run_compare(tiny_datastore, done, TECHNIQUES, changes)
    with pytest.raises(UserError, match="has 1 cell"):
        run_compare(tiny_datastore, done, ["stacking"], changes)


def test_cells_of_a_datastore_that_was_prepared_anew_are_refused(done: Path, tiny_datastore: Path) -> None:
    again = done / tiny_datastore.name
    shutil.copytree(tiny_datastore, again)
    run_compare(again, done, TECHNIQUES)
    train = read_json(again / "train.json")
    write_json(again / "train.json", {**train, "annotations": train["annotations"][1:]})
    with pytest.raises(UserError, match=f"{again.name} has other images or labels now"):
        run_compare(again, done, TECHNIQUES)


@pytest.mark.parametrize(
    ("name", "technique", "changes", "says"),
    [
        ("typo", "baseline", {}, "typo doesn't exist"),
        ("other", "bagging", {"threshold": 80}, "--threshold 80 makes no bags"),
        ("other", "baseline", {"class_weights": {"disk": 2.0}}, "did you mean disc"),
        ("other", "baseline", {"architectures": ["lcnet_036"]}, "did you mean"),
    ],
)
def test_what_a_later_datastore_cannot_have_is_found_before_any_training(
    done: Path, tiny_datastore: Path, name: str, technique: str, changes: dict[str, Any], says: str
) -> None:
    other = done / "other"
    shutil.copytree(tiny_datastore, other)
    train = read_json(other / "train.json")
    write_json(other / "train.json", {**train, "annotations": train["annotations"][90:]})  # 60 in the largest class
    settings = CompareSettings(
        output=done / "results", datastores=[tiny_datastore, done / name], techniques=[technique], seeds=[5]
    )
    with pytest.raises(UserError, match=says):
        compare(settings, FitSettings(datastore=tiny_datastore, output=done / "unused", **{**TINY, **changes}))


def test_a_learner_is_shared_wherever_the_images_lie_but_not_with_other_pixels(
    tiny_datastore: Path, tmp_path: Path, trained: list[str]
) -> None:
    moved, inverted = tmp_path / "a" / "moved", tmp_path / "inverted"
    shutil.copytree(tiny_datastore, moved)
    shutil.copytree(tiny_datastore, inverted)
    for path in inverted.rglob("*.png"):
        with Image.open(path) as image:
            ImageOps.invert(image.convert("RGB")).save(path)
    assert (inverted / "train.json").read_bytes() == (tiny_datastore / "train.json").read_bytes()
    learners = {}
    for store in (tiny_datastore, moved, inverted):
        run_compare(store, tmp_path, ["baseline"], {"epochs": 1})
        learners[store] = len(trained)
    assert learners == {tiny_datastore: 1, moved: 1, inverted: 2}


DIES = """
import os, signal
from training import learner
from training.__main__ import main

save, epochs = learner.Journal.on_train_epoch_end, []

def dies(*arguments):
    save(*arguments)
    epochs.append(1)
    if len(epochs) == 5:
        os.kill(os.getpid(), signal.SIGKILL)

learner.Journal.on_train_epoch_end = dies
main()
"""
"""`compare` in a process that is killed between the two epochs of its third learner."""


def test_a_killed_comparison_ends_with_the_same_table(whole: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    flags = [f"--{name}={value}" for name, value in TINY.items()]
    line = [sys.executable, "-c", DIES, "compare", "--datastores", str(tiny_datastore), "--techniques", *TECHNIQUES]
    places = ["--output", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    done = subprocess.run(
        [*line, *places, *flags], cwd=ROOT, env=dict(os.environ), capture_output=True, timeout=1200, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(tmp_path.rglob(CHECKPOINT))
    run_compare(tiny_datastore, tmp_path, TECHNIQUES)
    assert table(tmp_path) == table(whole)
    # Tiny networks may answer alike: their weights don't.
    assert weights(tmp_path) == weights(whole)


@pytest.mark.parametrize(
    ("techniques", "datastores", "says"),
    [(["magic"], 1, "magic"), (["baseline"], 0, "--datastores is empty"), (["baseline"], 2, "same name")],
)
def test_what_cannot_be_compared(
    tiny_datastore: Path, tmp_path: Path, techniques: list[str], datastores: int, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        compare(
            CompareSettings(output=tmp_path / "o", datastores=[tiny_datastore] * datastores, techniques=techniques),
            FitSettings(datastore=tiny_datastore, output=tmp_path / "unused"),
        )


def test_no_results_yet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training compare"):
        load_cells(tmp_path)
