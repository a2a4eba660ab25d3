"""Two cycles of the learning rate: what each trains, what is averaged, and that it goes on where it stopped."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tailstack.errors import UserError
from tailstack.run import WEIGHTS_FILE, learner_folder
from training import task
from training.cells import Cell
from training.cycles import FIRST, SECOND, joined, second_plan
from training.dataset import TrainingData
from training.fit import fit
from training.learner import CHECKPOINT, Journal
from training.settings import FitSettings
from training.sharing import origin
from training.techniques import Recipe, plan_learners

NAME = "0-lcnet_035"
TINY: dict[str, Any] = {
    "architectures": ["lcnet_035"],
    "technique": "baseline",
    "pretrained": False,
    "resolution": 32,
    "grow_from": 16,
    "epochs": 2,
    "batch_size": 32,
    "num_workers": 0,
}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(learner_folder(run, NAME) / WEIGHTS_FILE)


def test_the_weights_are_the_mean_of_both_ends(
    tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: dict[str, dict[str, torch.Tensor]] = {}
    train = task.train_learner

    def keeping(learner: Any, plan: Any, data: Any, loss: Any, settings: Any, folder: Path, *rest: Any) -> None:
        train(learner, plan, data, loss, settings, folder, *rest)
        # Unlike the file, the network is as it was trained.
        ends[folder.name] = {name: value.clone() for name, value in learner.state_dict().items()}

    monkeypatch.setattr(task, "train_learner", keeping)
    whole = fit(FitSettings(tiny_datastore, tmp_path / "two", second_cycle=1, **TINY))
    fit(FitSettings(tiny_datastore, tmp_path / "one", **TINY))
    first, second, mean = ends[FIRST], ends[SECOND], weights(tmp_path / "two")
    moved = 0.0
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(first[name], value)  # the first cycle is what there is without a second
        if value.is_floating_point():
            moved += float((second[name] - first[name]).abs().sum())
            torch.testing.assert_close(mean[name], (first[name] + second[name]) / 2)
    assert moved > 0
    curve = Cell.of_run(tmp_path / "two").curves[NAME]
    assert [row["epoch"] for row in curve] == [1, 2, 3]
    assert curve[0]["seconds"] < curve[1]["seconds"] < curve[2]["seconds"] == pytest.approx(whole.seconds)
    assert not list((tmp_path / "two").rglob(f"*-cycle/{WEIGHTS_FILE}"))


def test_how_the_second_cycle_is_trained(tiny_datastore: Path, tmp_path: Path) -> None:
    settings = FitSettings(tiny_datastore, tmp_path, grow_from=32, freeze=0.5, technique="drw", seed=3)
    [plan] = plan_learners(settings, np.zeros(4, np.int64))
    second = second_plan(plan)
    assert plan.recipe == Recipe(loss="ens", deferred=0.8, grow_from=32, freeze=0.5)
    assert second.recipe == Recipe(loss="ens")  # weighted from its start, of all layers, at full resolution
    assert (plan.seed, second.seed) == (3000, 3500)
    assert (second.architecture, second.samples.tolist()) == (plan.architecture, plan.samples.tolist())


def test_the_log_goes_on() -> None:
    first = [{"epoch": 1, "val_loss": 0.5, "seconds": 2.0}, {"epoch": 2, "val_loss": 0.4, "seconds": 3.5}]
    second = [{"epoch": 1, "val_loss": 0.3, "seconds": 1.0}, {"epoch": 2, "val_loss": 0.2, "seconds": 2.5}]
    assert joined(first, second) == [
        *first,
        {"epoch": 3, "val_loss": 0.3, "seconds": 4.5},
        {"epoch": 4, "val_loss": 0.2, "seconds": 6.0},
    ]


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_one_that_was_stopped_reaches_the_same_weights(
    tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    fit(FitSettings(tiny_datastore, tmp_path / "whole", second_cycle=2, **TINY))
    write, rows = Journal.on_train_epoch_end, []

    def stop(journal: Journal, trainer: Any, module: Any) -> None:
        write(journal, trainer, module)
        rows.append(trainer.current_epoch)
        if len(rows) == stopped_after:
            raise KeyboardInterrupt

    stopped = FitSettings(tiny_datastore, tmp_path / "stopped", second_cycle=2, **TINY)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "on_train_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(stopped)
    fit(stopped)
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "stopped")[name], value, rtol=0, atol=0)
    assert not list((tmp_path / "stopped").rglob(CHECKPOINT))


def test_a_learner_of_two_cycles_is_not_one_of_one(tmp_path: Path) -> None:
    data = TrainingData(*[np.zeros(4, np.int64)] * 4)
    origins = [
        origin(plan, data, (32, 32), settings)
        for settings in (FitSettings(tmp_path, tmp_path, second_cycle=epochs) for epochs in (None, 1, 2))
        for plan in plan_learners(settings, data.train_labels)[:1]
    ]
    # A run of before there was a choice has no word of it.
    assert "second_cycle" not in origins[0]
    assert [origins.index(made) for made in origins] == [0, 1, 2]


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--second_cycle is 0, and has to be 1 or more"):
        FitSettings(tmp_path, tmp_path, second_cycle=0)
    with pytest.raises(UserError, match="doesn't plan for a second cycle"):
        FitSettings(tmp_path, tmp_path, second_cycle=1, budget="5m")
    with pytest.raises(UserError, match="--second_cycle is for learners of one process each"):
        FitSettings(tmp_path, tmp_path, second_cycle=1, devices=2)
