"""What goes wrong while `fit` trains: a full disk, numbers that grow without bound, images that are gone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tailstack.errors import UserError
from tailstack.run import ENSEMBLE_FILE, WEIGHTS_FILE, learner_folder
from training.__main__ import main
from training.fit import fit
from training.settings import FitSettings

ROOT = Path(__file__).parents[2]


def settings(datastore: Path, output: Path, **values: Any) -> FitSettings:
    tiny: dict[str, Any] = {"architectures": ["lcnet_035"], "technique": "baseline", "pretrained": False}
    return FitSettings(datastore, output, **{**tiny, "resolution": 32, "epochs": 1, "num_workers": 0, **values})


FULL = """
import resource, sys
from pathlib import Path
import torch
from tailstack.errors import run_command
from training.learner import save_weights

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
run_command(lambda: save_weights({"head": torch.zeros(10_000)}, Path(sys.argv[1])))
"""
"""Writes weights where no file may be larger than 1,000 bytes, which ends as a full disk does."""


def test_weights_for_which_there_is_no_room(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS_FILE
    line = [sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"error: {path} can't be written: ")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_learner_whose_training_diverged_has_no_results(tiny_datastore: Path, tmp_path: Path) -> None:
    chosen = settings(tiny_datastore, tmp_path / "run", lr=0.5)
    record = fit(chosen)
    weights = learner_folder(chosen.run, record.learners[0].name) / WEIGHTS_FILE
    save_file({name: tensor * torch.nan for name, tensor in load_file(weights).items()}, weights)
    (chosen.run / ENSEMBLE_FILE).unlink()
    with pytest.raises(UserError, match=r"training of .*0-lcnet_035 diverged, .*: lower --lr, which is 0\.5"):
        fit(chosen)
    assert not (chosen.run / ENSEMBLE_FILE).exists()


SPOILED = """
import os
from pathlib import Path
from tailstack.errors import run_command
from training import dataset, learner
from training.__main__ import main

save = learner.Journal.on_train_epoch_end

def spoil(*arguments):
    save(*arguments)
    for path in Path(os.environ["SPOILED"]).rglob("*.png"):
        path.unlink()

dataset.IN_MEMORY = 0
learner.Journal.on_train_epoch_end = spoil
run_command(main)
"""
"""`fit` of images that are read when they are needed, and gone after the first epoch."""


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_are_gone_in_the_middle_of_a_training(tiny_datastore: Path, tmp_path: Path, workers: int) -> None:
    copy = Path(shutil.copytree(tiny_datastore, tmp_path / "copy"))
    settings(copy, tmp_path / "run", epochs=2, num_workers=workers).save(tmp_path / "fit.yaml")
    # In a process of its own: one that makes batches is a fork, and this one has the threads of all tests before.
    line = [sys.executable, "-c", SPOILED, "fit", "--config", str(tmp_path / "fit.yaml")]
    variables = {**os.environ, "SPOILED": str(copy / "images" / "train")}
    done = subprocess.run(line, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 1, done.stderr
    said = done.stderr.splitlines()[-1]
    assert re.match(r"error: image .*\.png \(annotation \d+\) can't be read: .*No such file", said)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flags", [["fit", "--cluster", "auto"], ["sweep", "--lr", "[0.1, 0.2]"]])
def test_ray_that_is_not_installed(
    tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("training.cluster", "training.sweep", "tailstack.cluster"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    tiny = ["--architectures", "[lcnet_035]", "--pretrained", "false", "--resolution", "32"]
    places = ["--datastore", str(tiny_datastore), "--output", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["training", *flags, *places, *tiny])
    with pytest.raises(UserError, match=r"^Ray isn't installed: pip install 'tailstack\[cluster\]'$"):
        main()
