"""A sweep: every combination once, the best by validation, and a second call that trains nothing anew."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    flags = ["--architectures=[lcnet_035,mobilenetv3_small_050]", "--lr=[1e-3,1e-2]", "--epochs=1"]
    done = sweep(tiny_datastore, tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path)
    assert {(row["architectures"], row["lr"]) for row in found} == {
        (name, lr) for name in ("lcnet_035", "mobilenetv3_small_050") for lr in ("0.001", "0.01")
    }
    scores = [float(row["val_top1"]) for row in found]
    assert scores == sorted(scores, reverse=True)
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
    assert len(rows(tmp_path)) == 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [([], "as a list to sweep"), (["--epochs=[0,1]"], "--epochs is 0"), (["--lr=[]"], "--lr is an empty list")],
)
def test_a_mistake_gets_one_clear_line(tiny_datastore: Path, tmp_path: Path, flags: list[str], says: str) -> None:
    done = sweep(tiny_datastore, tmp_path, *flags)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
