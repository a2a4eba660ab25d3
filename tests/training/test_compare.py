"""A comparison: its cells, what they share, and what a kill in the middle of one costs."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tailstack.errors import UserError
from tailstack.run import WEIGHTS_FILE
from training import compare as module
from training.cells import load_cells
from training.compare import compare
from training.learner import CHECKPOINT
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


def run_compare(datastore: Path, folder: Path, techniques: list[str], **values: Any) -> Path:
    settings = CompareSettings(
        output=folder / "results", runs=folder / "runs", datastores=[datastore], techniques=techniques, **values
    )
    return compare(settings, FitSettings(datastore=datastore, output=folder / "unused", **TINY))


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


def test_a_learner_that_techniques_share_is_trained_once(
    whole: Path, tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    train = module.fit.__globals__["train_in_cycles"].__globals__["train_task"].__globals__["train_learner"]

    def noting(learner: Any, plan: Any, *rest: Any) -> None:
        trained.append(plan.name)
        train(learner, plan, *rest)

    monkeypatch.setattr("training.task.train_learner", noting)
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
