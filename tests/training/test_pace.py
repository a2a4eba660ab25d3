"""A run that keeps to its budget: it follows its plan, goes on with it, and makes up for a machine that is slower."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tailstack.errors import UserError, run_command
from training import pace as module
from training.__main__ import main
from training.budget import Measured, Plan, Speed, Workload
from training.fit import fit
from training.learner import Journal
from training.pace import BUDGET_FILE
from training.settings import FitSettings
from training.stopwatch import measure

TINY: dict[str, Any] = {
    "architectures": ["lcnet_035", "mobilenetv3_small_050"],
    "pretrained": False,
    "resolution": 32,
    "batch_size": 64,
    "num_workers": 0,
}
GIVEN = set(TINY)
ROWS = [Measured(("lcnet_035", "mobilenetv3_small_050"), 32, 0, 1, "none", 0.5, "test")]


def settings(datastore: Path, output: Path, **values: Any) -> FitSettings:
    return FitSettings(datastore=datastore, output=output, budget="10m", **{**TINY, **values})


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A table of tiny learners, a machine of a known speed, and how often it was timed."""
    calls: list[int] = []

    def noting(names: Any, *_: Any) -> dict[str, Speed]:
        calls.append(1)
        return {name: Speed((16, 32), (0.0025, 0.01)) for name in names}

    monkeypatch.setattr(module, "load_table", lambda: ROWS)
    monkeypatch.setattr(module, "measure", noting)
    return calls


def epochs_of(run: Path) -> dict[str, int]:
    return {log.parent.name: len(log.read_text().splitlines()) - 1 for log in run.glob("learners/*/metrics.csv")}


def stop_where(patch: pytest.MonkeyPatch, found: Callable[[Journal], bool]) -> None:
    """Interrupt training as a user does, after the epoch for whose journal `found` is true."""
    write = Journal.on_train_epoch_end

    def stop(journal: Journal, trainer: Any, network: Any) -> None:
        write(journal, trainer, network)
        if found(journal):
            raise KeyboardInterrupt

    patch.setattr(Journal, "on_train_epoch_end", stop)


def test_a_run_follows_its_plan_and_goes_on_with_it(
    tiny_datastore: Path,
    tmp_path: Path,
    timed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = fit(settings(tiny_datastore, tmp_path / "whole"), given=GIVEN)
    said = capsys.readouterr().out
    assert "Budget 10m: lcnet_035, mobilenetv3_small_050 at 32 pixels, 3 epochs; takes about" in said
    assert "Expect a top-1 of about 0.50 on data like the table's" in said
    assert "longer training has not been measured" in said
    assert (whole.config["epochs"], whole.config["grow_from"], whole.config["budget"]) == (3, 0, "10m")

    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        # Its first epoch: a busy machine leaves it no other.
        stop_where(patch, lambda journal: journal.plan.architecture == "mobilenetv3_small_050")
        with pytest.raises(KeyboardInterrupt):
            fit(settings(tiny_datastore, stopped), given=GIVEN)
    assert len(timed) == 2
    begun = json.loads((stopped / BUDGET_FILE).read_text())["epochs"]
    fit(settings(tiny_datastore, stopped), given=GIVEN)
    assert len(timed) == 2
    assert json.loads((stopped / BUDGET_FILE).read_text())["epochs"] == begun == epochs_of(stopped)
    with pytest.raises(UserError, match="budget 10m there, 20m now"):
        fit(dataclasses.replace(settings(tiny_datastore, stopped), budget="20m"), given=GIVEN)


def test_epochs_of_the_user_stay_however_slow_the_machine(
    tiny_datastore: Path, tmp_path: Path, timed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Pace, "_slowness", lambda _self: 1e6)
    chosen = settings(tiny_datastore, tmp_path / "run", epochs=2)
    record = fit(chosen, given={*GIVEN, "epochs"})
    assert record.config["epochs"] == 2
    assert set(epochs_of(tmp_path / "run").values()) == {2}


def test_a_machine_that_turns_slower_shortens_the_learners_to_come(
    tiny_datastore: Path, tmp_path: Path, timed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Pace, "_slowness", lambda pace: 1e6 if pace._ledger.epochs else 1.0)
    monkeypatch.setattr(module, "epochs_that_fit", lambda plan, *_: plan.epochs)  # however slow the machine here
    fit(settings(tiny_datastore, tmp_path / "run"), given=GIVEN)
    epochs = epochs_of(tmp_path / "run")
    assert epochs["0-lcnet_035"] > 1
    assert epochs["1-mobilenetv3_small_050"] == 1


def test_a_learner_that_would_end_too_late_is_stopped_and_counts(
    tiny_datastore: Path,
    tmp_path: Path,
    timed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module.Pace, "_is_late", lambda _self, _name, rows, _console: rows[-1]["epoch"] == 2)
    monkeypatch.setattr(module, "epochs_that_fit", lambda plan, *_: plan.epochs)  # however slow the machine here
    record = fit(settings(tiny_datastore, tmp_path / "run", technique="baseline"), given=GIVEN)
    assert epochs_of(tmp_path / "run") == {"0-lcnet_035": 2}
    assert 0 <= record.results["top1"] <= 1
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_a_learner_becomes_longer_by_the_time_of_its_first_epoch(
    tiny_datastore: Path,
    tmp_path: Path,
    timed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "epochs_that_fit", lambda *_: 5)
    chosen = settings(tiny_datastore, tmp_path / "run", technique="drw", freeze=0.5)
    with monkeypatch.context() as patch:
        stop_where(patch, lambda journal: len(journal.rows) == 1)
        with pytest.raises(KeyboardInterrupt):
            fit(chosen, given={*GIVEN, "freeze"})
    # The checkpoint is of before the change of length.
    fit(chosen, given={*GIVEN, "freeze"})
    assert epochs_of(tmp_path / "run") == {"0-lcnet_035": 5}
    said = capsys.readouterr().out
    assert "0-lcnet_035: 5 epochs instead of 3, by the time of the first" in said
    assert "epoch 5/5" in said


@pytest.mark.parametrize(("seconds", "late"), [(150.0, False), (400.0, False), (430.0, True)])
def test_when_a_learner_is_late(tmp_path: Path, seconds: float, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = Speed((16, 32), (0.1, 0.4))
    plan = Plan(
        ("a", "b"), 32, 0, 6, (290.0, 290.0), (10.0, 10.0), ROWS[0], None, False, (speed, speed), Workload(100, 0, 75)
    )
    ledger = module.Ledger(plan, adapts=True, epochs={"0-a": 6})
    chosen = FitSettings(datastore=tmp_path, output=tmp_path, budget="10m")
    monkeypatch.setattr("time.monotonic", lambda: 1000.0 + seconds)
    pace = module.Pace(chosen, ledger, began=1000.0)
    monkeypatch.setattr(pace, "_names", ["0-a", "1-b"])
    # An epoch takes 50 s; 10 s are kept for its own test, and half of the other learner's 290 s, of 630 s in all.
    rows = [{"epoch": 1.0, "seconds": seconds - 50}, {"epoch": 2.0, "seconds": seconds}]
    assert pace._is_late("0-a", rows, Console(quiet=True)) is late
    assert not pace._is_late("0-a", [{"epoch": 6.0, "seconds": seconds}], Console(quiet=True))


def test_timing_gives_seconds_an_image(tmp_path: Path) -> None:
    chosen = FitSettings(datastore=tmp_path, output=tmp_path, batch_size=8)
    found = measure(["lcnet_035"], 6, (16, 32), chosen)
    assert set(found) == {"lcnet_035"}
    assert found["lcnet_035"].resolutions == (16, 32)
    assert all(0 < value < math.inf for value in found["lcnet_035"].seconds)


def test_the_command_tells_what_the_user_chose_from_what_is_a_default(
    tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    def noting(chosen: FitSettings, given: Any) -> None:
        seen.update(settings=chosen, given=set(given))

    monkeypatch.setattr("training.fit.fit", noting)
    (tmp_path / "some.yaml").write_text("epochs: 8\n")
    line = ["fit", "--datastore", str(tiny_datastore), "--output", str(tmp_path / "run"), "--resolution", "96"]
    monkeypatch.setattr(sys, "argv", ["training", *line, "--budget", "20m", "--config", str(tmp_path / "some.yaml")])
    main()
    assert {"resolution", "epochs", "budget"} <= seen["given"]
    assert not {"architectures", "grow_from"} & seen["given"]
    assert (seen["settings"].budget, seen["settings"].epochs) == ("20m", 8)
    monkeypatch.setattr(sys, "argv", ["training", *line, "--budget", "soon"])
    with pytest.raises(SystemExit):
        run_command(main)
    assert capsys.readouterr().err == "error: --budget soon is no length of time: write it as 300s, 20m or 2h\n"


def test_learners_in_parallel_have_no_budget(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave --cluster out"):
        FitSettings(datastore=tmp_path, output=tmp_path, budget="20m", cluster="auto")


@pytest.mark.parametrize("content", ["", "{}", '{"plan": 3}'])
def test_a_plan_that_was_damaged(tiny_datastore: Path, tmp_path: Path, content: str, timed: list[int]) -> None:
    (tmp_path / BUDGET_FILE).write_text(content)
    with pytest.raises(UserError, match=BUDGET_FILE):
        fit(settings(tiny_datastore, tmp_path), given=GIVEN)
