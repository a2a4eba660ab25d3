"""A sweep: every combination once, the best by validation, and a second call that trains nothing anew."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from tailstack.errors import UserError
from tailstack.files import read_json
from tailstack.run import ENSEMBLE_FILE, WEIGHTS_FILE
from training import sweep as module
from training.learner import METRICS
from training.settings import FitSettings, SweepSettings
from training.sweep import METRIC, PROGRESS, scheduler, train_trial

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
TINY = ["--pretrained=false", "--resolution=32", "--batch_size=64", "--num_workers=0", "--cpus_per_trial=1"]


def sweep(datastore: Path, output: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "training", "sweep", "--datastore", str(datastore), "--output", str(output)]
    return subprocess.run(
        [*line, *TINY, *flags],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_grid_is_tried_and_the_best_on_validation_comes_first(tiny_datastore: Path, tmp_path: Path) -> None:
    flags = ["--architectures=[lcnet_035,mobilenetv3_small_050]", "--lr=[1e-3,1e-2]", "--epochs=2"]
    done = sweep(tiny_datastore, tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path)
    assert {(row["architectures"], row["lr"]) for row in found} == {
        (name, lr) for name in ("lcnet_035", "mobilenetv3_small_050") for lr in ("0.001", "0.01")
    }
    scores = [float(row["val_top1"]) for row in found]
    assert scores == sorted(scores, reverse=True)
    ensembles = [read_json(path) for path in tmp_path.glob(f"runs/*/{ENSEMBLE_FILE}")]
    assert scores == sorted((run["validation"]["top1"] for run in ensembles), reverse=True)
    assert all(row["test_top1"] and int(row["parameters"]) > 0 for row in found)
    assert f"Best on validation: architectures={found[0]['architectures']},lr={found[0]['lr']}" in done.stdout
    logs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/learners/*/weights.safetensors")}
    assert len(logs) == 4
    again = sweep(tiny_datastore, tmp_path, *flags)
    assert again.returncode == 0, again.stderr
    assert rows(tmp_path) == found
    assert {path: path.stat().st_mtime_ns for path in logs} == logs


def test_losers_are_stopped_early_and_samples_are_drawn(tiny_datastore: Path, tmp_path: Path) -> None:
    done = sweep(tiny_datastore, tmp_path, "--lr=[1e-7,1e-2,1e-6]", "--samples=2", "--epochs=4")
    assert done.returncode == 0, done.stderr
    best, other = rows(tmp_path)
    assert (best["epochs_done"], best["test_top1"] != "") == ("4", True)
    assert (other["epochs_done"], other["test_top1"] != "") in {("4", True), ("2", False)}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "as a list to sweep"),
        (["--epochs=[0,1]"], "--epochs is 0"),
        (["--lr=[]"], "--lr is an empty list"),
        (["--lr=[0.1,0.2]", "--samples=-1"], "--samples is -1"),
        (["--lr=[0.1,0.2]", "--cpus_per_trial=4096"], "--cpus_per_trial is 4096"),
    ],
)
def test_a_mistake_gets_one_clear_line(tiny_datastore: Path, tmp_path: Path, flags: list[str], says: str) -> None:
    done = sweep(tiny_datastore, tmp_path, *flags)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_results_in_an_object_store(tiny_datastore: Path) -> None:
    with pytest.raises(UserError, match=r"--output is s3://bucket/sweep, and has to be a folder of this machine"):
        sweep_here(tiny_datastore, Path("s3://bucket/sweep"), {"lr": [0.1, 0.2]})


def test_no_cluster_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*_: object, **__: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(module.ray, "init", init)
    with pytest.raises(UserError, match="there is no Ray cluster at head:1"):
        module._try_all(SweepSettings(tmp_path, cluster="head:1"), [], tmp_path)


def test_ctrl_c_ends_the_sweep_and_the_same_command_goes_on(tiny_datastore: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "training", "sweep", "--datastore", str(tiny_datastore), "--output", str(tmp_path)]
    flags = ["--architectures=[lcnet_035]", "--lr=[1e-3,1e-2]", "--epochs=4"]
    with subprocess.Popen([*line, *TINY, *flags], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as begun:
        while not list(tmp_path.rglob(METRICS)):
            assert begun.poll() is None
            time.sleep(0.05)
        begun.send_signal(signal.SIGINT)
        _, said = begun.communicate(timeout=600)
    assert begun.returncode == 130
    assert b"Run the same command again" in said
    assert not (tmp_path / "sweep.csv").exists()
    done = sweep(tiny_datastore, tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    assert any(row["test_top1"] for row in rows(tmp_path))


def test_trials_that_were_never_begun_are_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def result(number: int, **values: Any) -> SimpleNamespace:
        config = {"point": number}
        return SimpleNamespace(**{"metrics": {"done": True}, "error": None, "config": config, **values})

    ended = [result(1), result(0, metrics={}, error=RuntimeError())]
    runs = [FitSettings(tmp_path, tmp_path / str(number)) for number in range(3)]
    monkeypatch.setattr(module, "connect", lambda *_, **__: None)
    for found in (ended, [*ended, result(2, metrics={METRIC: 0.5})], [*ended, result(2, metrics=None, config=None)]):
        monkeypatch.setattr(module, "_tuner", lambda *_, found=found: SimpleNamespace(fit=lambda: found))
        with pytest.raises(KeyboardInterrupt):
            module._try_all(SweepSettings(tmp_path), runs, tmp_path)
    assert module._try_all(SweepSettings(tmp_path), runs[:2], tmp_path) == ended[::-1]


class Trains:
    """Stands in for `fit`: epochs and weights of learners that are as good as their rate, on a scale of its own."""

    def __init__(self, learners: int) -> None:
        self.learners = learners

    def __call__(self, run: FitSettings, on_epoch: Any) -> SimpleNamespace:
        for learner in range(self.learners):
            for epoch in range(1, run.epochs + 1):
                on_epoch({"epoch": epoch, METRIC: run.lr * epoch / run.epochs})
            folder = run.output / "learners" / str(learner)
            folder.mkdir(parents=True)
            (folder / WEIGHTS_FILE).touch()
        return SimpleNamespace(validation={"top1": run.lr + 0.05})


@pytest.mark.parametrize("learners", [1, 3])
def test_what_a_trial_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learners: int) -> None:
    monkeypatch.setattr(module, "fit", Trains(learners))
    told: list[dict[str, float]] = []
    train_trial(FitSettings(tmp_path, tmp_path / "run", epochs=8, lr=0.8), 4, told.append)
    # The last epoch of the first learner isn't there, nor any of another: its end is the ensemble's.
    assert [row["epochs_done"] for row in told] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row[PROGRESS] for row in told] == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert [row[METRIC] for row in told[-2:]] == pytest.approx([0.7, 0.85])


def test_a_trial_that_goes_on_in_its_second_learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FitSettings(tmp_path, tmp_path / "run", epochs=8)
    (run.output / "learners" / "first").mkdir(parents=True)
    (run.output / "learners" / "first" / WEIGHTS_FILE).touch()
    monkeypatch.setattr(module, "fit", Trains(1))
    told: list[dict[str, float]] = []
    train_trial(run, 8, told.append)
    assert [row["epochs_done"] for row in told] == [8]


@pytest.mark.parametrize("shortest", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("times", [1, 3])
def test_only_a_loser_is_stopped_before_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortest: int, times: int
) -> None:
    monkeypatch.setattr(module, "fit", Trains(2))
    asha = scheduler(shortest)
    asha.set_search_properties(METRIC, "max")

    def stopped_at(name: str, lr: float, epochs: int) -> float:
        trial: Any = SimpleNamespace(trial_id=name)
        asha.on_trial_add(None, trial)
        told: list[dict[str, float]] = []
        train_trial(FitSettings(tmp_path, tmp_path / name, epochs=epochs, lr=lr), shortest, told.append)
        return next(row["epochs_done"] for row in told if asha.on_trial_result(None, trial, row) == "STOP")

    assert stopped_at("first", 0.4, shortest) == shortest
    assert stopped_at("better and longer", 0.5, shortest * times) == shortest * times
    # Nobody is stopped before its second epoch, nor in its last one.
    assert stopped_at("worse", 0.1, shortest) == (2 if shortest > 2 else shortest)


def sweep_here(datastore: Path, output: Path, swept: dict[str, list[Any]], **values: Any) -> list[dict[str, Any]]:
    first = {name: [found[0]] if name == "architectures" else found[0] for name, found in swept.items()}
    base = {"technique": "baseline", "architectures": ["lcnet_035"], **values, **first}
    return module.sweep(SweepSettings(output), FitSettings(datastore, output, **base), swept)


@pytest.mark.parametrize(
    ("swept", "values", "says"),
    [
        ({"lr": [1, 2]}, {"datastore": Path("none")}, "datastore none doesn't exist"),
        ({"architectures": ["lcnet_035", "lcnet_036"]}, {}, "did you mean"),
        ({"technique": ["baseline", "magic"]}, {}, "no technique 'magic'"),
        ({"technique": ["baseline", "bagging"]}, {"threshold": 110}, "makes no bags"),
        ({"lr": [1, 2]}, {"class_weights": {"disk": 2.0}}, "did you mean disc"),
        ({"val_fraction": [0.1, 0.001]}, {}, "0.001 holds no image out"),
    ],
)
def test_a_trial_that_no_run_can_have_is_found_before_any_training(
    tiny_datastore: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    swept: dict[str, list[Any]],
    values: dict[str, Any],
    says: str,
) -> None:
    monkeypatch.setattr(module, "_try_all", lambda *_: pytest.fail("Ray is started"))
    with pytest.raises(UserError, match=says):
        sweep_here(**{"datastore": tiny_datastore, "output": tmp_path, "swept": swept, **values})


def test_another_sweep_in_the_same_folder(
    tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: object) -> None:
        raise UserError("it begins")

    monkeypatch.setattr(module, "_try_all", begin)
    output = tmp_path / "sweep"
    for _ in range(2):
        with pytest.raises(UserError, match="it begins"):
            sweep_here(tiny_datastore, output, {"lr": [0.001, 0.01]})
    with pytest.raises(UserError, match=r"swept .*0\.001, 0\.01.* there, .*0\.05, 0\.07.* now"):
        sweep_here(tiny_datastore, output, {"lr": [0.05, 0.07]})
    with pytest.raises(UserError, match=r"weight_decay 0\.05 there, 0\.1 now"):
        sweep_here(tiny_datastore, output, {"lr": [0.001, 0.01]}, weight_decay=0.1)
    moved = tmp_path / "moved"
    shutil.copytree(tiny_datastore, moved)
    with pytest.raises(UserError, match="it begins"):
        sweep_here(moved, output, {"lr": [0.001, 0.01]}, num_workers=1)
    (moved / "test.json").write_text((moved / "test.json").read_text() + "\n")
    with pytest.raises(UserError, match="moved has other images"):
        sweep_here(moved, output, {"lr": [0.001, 0.01]})
    (output / "sweep.json").unlink()
    (output / "tune").mkdir()
    with pytest.raises(UserError, match="doesn't say what it tries"):
        sweep_here(tiny_datastore, output, {"lr": [0.001, 0.01]})


def test_only_a_finished_trial_is_the_best(
    tiny_datastore: Path,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = RuntimeError("Traceback\n  line 1\nUserError: no such thing")
    results = [SimpleNamespace(metrics={METRIC: 0.9}, error=error), SimpleNamespace(metrics={METRIC: 0.3}, error=None)]
    monkeypatch.setattr(module, "_try_all", lambda *_: results)
    with pytest.raises(UserError, match="no trial was finished: UserError: no such thing"):
        sweep_here(tiny_datastore, tmp_path, {"lr": [0.1, 0.2]})
    assert "Best" not in capsys.readouterr().out
    shutil.copytree(tiny_run, tmp_path / "runs" / "lr=0.2")
    assert [row["lr"] for row in sweep_here(tiny_datastore, tmp_path, {"lr": [0.1, 0.2]})] == [0.2, 0.1]
    assert "Best on validation: lr=0.2" in capsys.readouterr().out


def test_a_datastore_in_an_object_store(tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fsspec.filesystem("memory").put(f"{tiny_datastore}/", "/bucket/swept", recursive=True)
    asked: list[FitSettings] = []

    def noting(_settings: SweepSettings, runs: list[FitSettings], _output: Path) -> None:
        asked.extend(runs)
        raise UserError("enough")

    monkeypatch.setattr(module, "_try_all", noting)
    with pytest.raises(UserError, match="enough"):
        sweep_here(Path("memory://bucket/swept"), tmp_path / "sweep", {"lr": [0.1, 0.2]})
    assert {run.to_dict()["datastore"] for run in asked} == {"memory://bucket/swept"}
