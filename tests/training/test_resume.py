"""A run that was stopped goes on, and reaches the weights of a run that never was."""

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailstack.errors import UserError
from tailstack.run import RunRecord
from training.fit import fit
from training.learner import CHECKPOINT, Journal
from training.settings import FitSettings

ROOT = Path(__file__).parents[2]


def settings(datastore: Path, output: Path, **values: Any) -> FitSettings:
    tiny: dict[str, Any] = {
        "architectures": ["lcnet_035", "mobilenetv3_small_050"],
        "pretrained": False,
        "resolution": 32,
        "epochs": 3,
        "batch_size": 32,
        "num_workers": 0,
    }
    return FitSettings(datastore=datastore, output=output, **{**tiny, **values})


def weights(run: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in run.glob("learners/*/weights.safetensors")}


def stop_after(epoch: int, architecture: str) -> Callable[..., None]:
    """Return a hook that stops the training as Ctrl-C does, once that epoch's checkpoint is written."""
    write = Journal.on_train_epoch_end

    def hook(journal: Journal, trainer: Any, module: Any) -> None:
        write(journal, trainer, module)
        if journal.plan.architecture == architecture and trainer.current_epoch + 1 == epoch:
            raise KeyboardInterrupt

    return hook


def test_a_stopped_run_reaches_the_same_weights(
    tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(settings(tiny_datastore, tmp_path / "whole"))
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "on_train_epoch_end", stop_after(2, "mobilenetv3_small_050"))
        with pytest.raises(KeyboardInterrupt):
            fit(settings(tiny_datastore, stopped))
    assert set(weights(stopped)) == {"0-lcnet_035"}
    assert (stopped / "learners" / "1-mobilenetv3_small_050" / CHECKPOINT).exists()
    with pytest.raises(UserError, match="isn't finished"):
        RunRecord.load(stopped)

    resumed = fit(settings(tiny_datastore, stopped))
    assert weights(stopped) == weights(tmp_path / "whole")
    assert resumed.results == whole.results
    for log in stopped.glob("learners/*/metrics.csv"):
        with log.open(newline="") as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    assert not list(stopped.rglob(CHECKPOINT))


STOPPED = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
from tailstack.errors import run_command
from training import learner
from training.__main__ import main

step, steps = learner.Bar.on_train_batch_end, []

def stop(*arguments):
    step(*arguments)
    steps.append(1)
    if len(steps) == 9:
        os.killpg(0, signal.SIGINT)

learner.Bar.on_train_batch_end = stop
run_command(main)
"""
"""`fit` in a terminal of its own, where Ctrl-C reaches it and its loader in the second of its epochs of six steps."""


def test_ctrl_c_in_the_middle_of_an_epoch(tiny_datastore: Path, tmp_path: Path) -> None:
    chosen = {"technique": "baseline", "epochs": 2}
    whole = fit(settings(tiny_datastore, tmp_path / "whole", **chosen))
    stopped = tmp_path / "stopped"
    settings(tiny_datastore, stopped, num_workers=1, **chosen).save(tmp_path / "fit.yaml")
    line = [sys.executable, "-c", STOPPED, "fit", "--config", str(tmp_path / "fit.yaml")]
    done = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False, start_new_session=True
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "stopped. Run the same command again to go on where it stopped."
    assert "Traceback" not in done.stderr
    folder = stopped / "learners" / "0-lcnet_035"
    assert (folder / CHECKPOINT).exists()
    resumed = fit(settings(tiny_datastore, stopped, **chosen))
    assert weights(stopped) == weights(tmp_path / "whole")
    assert resumed.results == whole.results


def test_a_finished_run_is_not_trained_again_nor_with_other_settings(
    tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    one = {"technique": "baseline", "epochs": 1}
    first = fit(settings(tiny_datastore, run, **one))
    with pytest.raises(UserError, match="lr"):
        fit(settings(tiny_datastore, run, lr=0.5, **one))

    def refuse(*_: object) -> None:
        raise AssertionError("it trains again")

    monkeypatch.setattr("training.task.train_learner", refuse)
    assert fit(settings(tiny_datastore, run, **one)).results == first.results
