"""The command `fit`: what it refuses before it trains, what it records, and a run whose process was killed."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tailstack import datastore as datastores
from tailstack.errors import UserError, run_command
from tailstack.metrics import top_k
from tailstack.network import Learner, load_ensemble
from tailstack.run import CONFIG_FILE, SPLIT_FILE, WEIGHTS_FILE, RunRecord, learner_folder
from training.__main__ import main
from training.fit import fit
from training.learner import CHECKPOINT, METRICS, Journal, one_cycle, parameter_groups
from training.settings import FitSettings
from training.techniques import completed

ROOT = Path(__file__).parents[2]


def settings(datastore: Path, output: Path, **values: Any) -> FitSettings:
    tiny: dict[str, Any] = {
        "architectures": ["lcnet_035"],
        "pretrained": False,
        "resolution": 32,
        "epochs": 1,
        "batch_size": 64,
        "num_workers": 0,
    }
    return FitSettings(datastore=datastore, output=output, **{**tiny, **values})


def refused(chosen: FitSettings) -> str:
    """Return why `fit` refuses, and check that it had not begun to train."""
    with pytest.raises(UserError) as caught:
        fit(chosen)
    assert not list(chosen.output.glob("learners/*/*.ckpt"))
    return str(caught.value)


@pytest.fixture
def copy(tiny_datastore: Path, tmp_path: Path) -> Path:
    """A datastore that a test may spoil."""
    return Path(shutil.copytree(tiny_datastore, tmp_path / "copy"))


DIES = """
import os, signal
from contextlib import contextmanager
from training import learner
from training.__main__ import main

whole_file, paths = learner.whole_file, []

@contextmanager
def dies(path):
    paths.append(path)
    with whole_file(path) as part:
        if len(paths) == 2:
            part.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        yield part

learner.whole_file = dies
main()
"""
"""`fit` in a process that is killed while it writes its first weights."""


def test_a_killed_process_costs_no_more_than_the_epoch_it_was_in(tiny_datastore: Path, tmp_path: Path) -> None:
    chosen = {"technique": "stacking-wl", "epochs": 2}
    whole = fit(settings(tiny_datastore, tmp_path / "whole", **chosen))
    killed = tmp_path / "killed"
    # A process that loads batches beside the training makes the same ones.
    settings(tiny_datastore, killed, num_workers=1, **chosen).save(tmp_path / "fit.yaml")
    line = [sys.executable, "-c", DIES, "fit", "--config", tmp_path / "fit.yaml"]
    code = subprocess.run(line, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=1200, check=False).returncode
    assert code == -signal.SIGKILL
    folder = killed / "learners" / "0-lcnet_035"
    assert (folder / CHECKPOINT).exists()
    assert not (folder / WEIGHTS_FILE).exists()

    resumed = fit(settings(tiny_datastore, killed, **chosen))
    expected = tmp_path / "whole" / "learners" / "0-lcnet_035" / WEIGHTS_FILE
    assert (folder / WEIGHTS_FILE).read_bytes() == expected.read_bytes()
    assert resumed.results == whole.results
    with (folder / METRICS).open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert whole.learners[0].loss == "isns"


def test_what_a_run_consists_of(tiny_datastore: Path, tmp_path: Path) -> None:
    chosen = settings(tiny_datastore, tmp_path / "run", technique="baseline")
    returned = fit(chosen)
    record = RunRecord.load(tmp_path / "run")
    assert record == returned
    store = datastores.load(tiny_datastore)
    assert (record.classes, record.class_counts) == (store.classes, store.train.counts(6).tolist())
    assert record.image_size == (32, 32)
    assert record.datastore == {"path": str(tiny_datastore), **store.digests()}
    assert record.config == completed(chosen).to_dict()
    assert record.learners[0].loss == "none"
    split = json.loads((tmp_path / "run" / SPLIT_FILE).read_text())
    assert sorted(split["train"] + split["val"]) == list(range(len(store.train)))
    assert record.learners[0].train_images == len(split["train"])
    # Each class is trained on, the smallest with four images too.
    assert set(store.train.labels[split["train"]]) == set(range(6))
    (log,) = (tmp_path / "run").glob("learners/*/metrics.csv")
    with log.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert {"epoch", "train_loss", "val_loss", "val_top1", "images_per_second", "seconds"} == set(row)
    assert list(log.parent.glob("events.out.tfevents.*"))


def test_a_split_of_the_datastore_is_taken_as_it_is(copy: Path, tmp_path: Path) -> None:
    store = datastores.load(copy)
    some = store.test.subset(np.arange(0, len(store.test), 2))
    rest = store.test.subset(np.arange(1, len(store.test), 2))
    for name, split in (("val", some), ("test", rest)):
        datastores.save_split(copy / f"{name}.json", split.root, store.classes, split.images, split.labels)
    store = datastores.load(copy)
    record = fit(settings(copy, tmp_path / "run", technique="baseline"))
    assert record.learners[0].train_images == len(store.train)
    assert set(record.datastore) == {"path", "train", "val", "test"}
    assert json.loads((tmp_path / "run" / SPLIT_FILE).read_text()) == {"datastore_sha256": store.digests()}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_classes_too_small_for_an_image_to_validate(tiny_datastore: Path, tmp_path: Path) -> None:
    record = fit(settings(tiny_datastore, tmp_path / "run", technique="baseline", val_fraction=0.003))
    assert record.validation == {}
    assert record.results["top1"] > 0


@pytest.mark.parametrize("steps", [*range(1, 10), 100])
def test_the_learning_rate_has_one_peak_however_few_the_steps(steps: int) -> None:
    schedule = one_cycle(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), steps, warm_up=0.25)
    rates = [schedule.get_last_lr()[0]]
    for _ in range(steps - 1):
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert all(0 < rate <= 0.1 for rate in rates)
    if steps >= 8:
        peak = rates.index(max(rates))
        assert max(rates) > 0.09
        assert rates == [*sorted(rates[: peak + 1]), *sorted(rates[peak + 1 :], reverse=True)]
        assert rates[-1] < 0.001


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_cycle_that_becomes_longer_goes_on_where_it_would_be_by_then() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    short = one_cycle(optimizer, 100, warm_up=0.25)
    for _ in range(40):
        short.step()
    long = one_cycle(optimizer, 200, warm_up=0.25, done=40)
    whole = one_cycle(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), 200, warm_up=0.25)
    for _ in range(40):
        whole.step()
    for _ in range(159):
        assert long.get_last_lr() == whole.get_last_lr()
        long.step(), whole.step()


def test_every_parameter_has_one_rate_and_decay_and_the_body_its_own(tiny_datastore: Path, tmp_path: Path) -> None:
    learner = Learner("lcnet_035", 6, 32)
    groups = parameter_groups(learner, settings(tiny_datastore, tmp_path, lr=0.1, weight_decay=0.3), body_lr=0.5)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in learner.parameters())
    head = {id(parameter) for parameter in learner.backbone.get_classifier().parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (0.1 if id(parameter) in head else 0.05)
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0)


@pytest.mark.parametrize(
    "chosen",
    [
        {"technique": "ldam", "epochs": 2},
        {"technique": "logit-adjusted", "tau": [0.5], "ema": 0.9, "body_lr": 0.1, "epochs": 2},
        {"technique": "baseline", "epochs": 3, "grow_from": 16, "resolution": 48, "freeze": 0.5},
        {"technique": "bagging", "threshold": 40, "epochs": 2, "class_weights": {"ring": 3.5}},
        {
            "technique": "tailstack",
            "architectures": ["lcnet_035", "mobilenetv3_small_050"],
            "tau": [0.5, 1.5],
            "epochs": 2,
        },
    ],
)
def test_what_a_recipe_changes_is_exported_and_resumed_alike(
    tiny_datastore: Path, tmp_path: Path, chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = fit(settings(tiny_datastore, tmp_path / "run", **chosen))
    store = datastores.load(tiny_datastore)
    images = torch.from_numpy(np.stack([store.test.decode(i) for i in range(len(store.test))]))
    ensemble = load_ensemble(tmp_path / "run", record)
    with torch.inference_mode():
        probabilities, votes = (output.numpy() for output in ensemble(images))
    assert top_k(probabilities, store.test.labels, 1) == record.results["top1"]
    assert [top_k(votes[:, k], store.test.labels, 1) for k in range(len(record.learners))] == [
        learner.results["top1"] for learner in record.learners
    ]
    write = Journal.on_train_epoch_end

    def stop(journal: Journal, trainer: Any, module: Any) -> None:
        write(journal, trainer, module)
        if trainer.current_epoch == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "on_train_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(settings(tiny_datastore, tmp_path / "stopped", **chosen))
    resumed = fit(settings(tiny_datastore, tmp_path / "stopped", **chosen))
    assert resumed.results == record.results
    for learner in record.learners:
        paths = [learner_folder(tmp_path / name, learner.name) / WEIGHTS_FILE for name in ("run", "stopped")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_moving_average_lies_between_the_first_weights_and_the_last(tiny_datastore: Path, tmp_path: Path) -> None:
    head = {}
    for decay in (0.0, 1e-6, 0.5, 1 - 1e-6):
        output = tmp_path / str(decay)
        record = fit(settings(tiny_datastore, output, technique="baseline", ema=decay, lr=0.01))
        weights = load_file(learner_folder(output, record.learners[0].name) / WEIGHTS_FILE)
        head[decay] = next(tensor for name, tensor in weights.items() if name.endswith("classifier.weight"))
    last = head[0.0]
    torch.testing.assert_close(head[1e-6], last, atol=1e-5, rtol=1e-3)
    distances = [float((head[decay] - last).norm()) for decay in (1e-6, 0.5, 1 - 1e-6)]
    assert distances == sorted(distances)
    assert distances[1] > 10 * distances[0]


def test_class_weights_of_a_class_that_is_not_there(tiny_datastore: Path, tmp_path: Path) -> None:
    message = refused(settings(tiny_datastore, tmp_path / "run", class_weights={"rings": 2.0}))
    assert "'rings'" in message
    assert "did you mean ring," in message


def test_an_unknown_architecture_is_answered_with_the_nearest(tiny_datastore: Path, tmp_path: Path) -> None:
    message = refused(settings(tiny_datastore, tmp_path / "run", architectures=["lcnet_035", "resnet19"]))
    assert "'resnet19'" in message
    assert "resnet18" in message
    assert not (tmp_path / "run").exists()


def test_weights_that_cannot_be_had_are_missed_before_the_first_learner_is_trained(
    tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to the hub\nand more")

    monkeypatch.setattr("training.pretrained.build_backbone", unreachable)
    both = ["tf_efficientnet_lite0", "lcnet_035"]
    message = refused(settings(tiny_datastore, tmp_path / "run", architectures=both, pretrained=True))
    assert "weights of lcnet_035 can't be had (no route to the hub)" in message
    assert "--pretrained false" in message
    assert not list((tmp_path / "run").rglob(METRICS))


def test_unreadable_images_are_named_before_the_training(copy: Path, tmp_path: Path) -> None:
    store = datastores.load(copy)
    store.train.path(3).write_text("no image")
    store.train.path(7).write_bytes(store.train.read(7)[:100])
    message = refused(settings(copy, tmp_path / "run", val_fraction=0.001))
    assert "2 image(s)" in message
    assert store.train.images[3] in message
    assert store.train.images[7] in message


def test_a_folder_with_other_files_is_left_alone(tiny_datastore: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert "has files that are not a run's" in refused(settings(tiny_datastore, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_training_split_that_changed_meanwhile(copy: Path, tmp_path: Path) -> None:
    store = datastores.load(copy)
    fit(settings(copy, tmp_path / "run", technique="baseline"))
    fewer = store.train.subset(np.arange(1, len(store.train)))
    datastores.save_split(copy / "train.json", fewer.root, store.classes, fewer.images, fewer.labels)
    with pytest.raises(UserError, match="has changed since"):
        fit(settings(copy, tmp_path / "run", technique="baseline"))


@pytest.mark.parametrize(("name", "now"), [("lr", 0.5), ("seed", 7), ("loss", "ens"), ("augment", "flip")])
def test_other_settings_need_another_folder(tiny_datastore: Path, tmp_path: Path, name: str, now: object) -> None:
    run = tmp_path / "run"
    run.mkdir()
    settings(tiny_datastore, run).save(run / CONFIG_FILE)
    message = refused(settings(tiny_datastore, run, **{name: now}))
    assert f"{name} {getattr(settings(tiny_datastore, run), name)} there, {now} now" in message


@pytest.mark.parametrize("content", ["", "- a list", "lr: [1", "\x00"])
def test_a_config_that_was_damaged(tiny_datastore: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / CONFIG_FILE).write_text(content)
    assert CONFIG_FILE in refused(settings(tiny_datastore, tmp_path))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--technique", "magic"], "there is no technique 'magic'"),
        (["--datastore", "none"], "datastore none doesn't exist"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--seed", "20240101"], "--seed is 20240101"),
        (["--grow_from", "-8"], "--grow_from is -8"),
        (["--num_workers", "-1"], "--num_workers is -1"),
        (["--cpus_per_learner", "-1"], "--cpus_per_learner is -1"),
        (["--class_weights", "{3: 2.0}"], "--class_weights names 3"),
        (["--architectures", "[vit_tiny_patch16_224]", "--grow_from", "32"], "vit_tiny_patch16_224 is built for one"),
    ],
)
def test_the_command_line_answers_mistakes_in_one_line(
    tiny_datastore: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    named: str,
) -> None:
    line = ["fit", "--datastore", str(tiny_datastore), "--output", str(tmp_path / "run"), *flags]
    monkeypatch.setattr(sys, "argv", ["training", *line])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert named in error
    assert len(error.splitlines()) == 1


@pytest.mark.ray
def test_learners_in_parallel_reach_the_same_weights(tiny_datastore: Path, tmp_path: Path) -> None:
    chosen = {"technique": "stacking-wl", "architectures": ["lcnet_035", "mobilenetv3_small_050"]}
    one = fit(settings(tiny_datastore, tmp_path / "one", **chosen))
    both = fit(settings(tiny_datastore, tmp_path / "both", cluster="auto", cpus_per_learner=1, **chosen))
    assert both.results == one.results
    for learner in one.learners:
        paths = [learner_folder(tmp_path / name, learner.name) / WEIGHTS_FILE for name in ("one", "both")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.ray
def test_a_learner_that_needs_more_cores_than_there_are(tiny_datastore: Path, tmp_path: Path) -> None:
    chosen = settings(tiny_datastore, tmp_path / "run", technique="baseline", cluster="auto", cpus_per_learner=4096)
    assert "--cpus_per_learner is 4096" in refused(chosen)


@pytest.mark.ray
def test_what_a_learner_on_ray_cannot_do_is_one_line(
    tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr("training.cluster._train", full)
    chosen = settings(tiny_datastore, tmp_path / "run", technique="baseline", cluster="auto")
    assert refused(chosen) == "the disk is full"
