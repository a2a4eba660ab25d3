"""One learner in two processes, by Lightning's DDP with gloo: what one process makes of the same batches."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tailstack.errors import UserError
from tailstack.run import RunRecord, learner_folder
from training.compare import compare
from training.learner import METRICS
from training.settings import CompareSettings, FitSettings

ROOT = Path(__file__).parents[2]
# Without batch normalisation, whose figures would be those of half a batch, and without chance.
FLAGS = ["--technique", "stacking", "--architectures", "[test_convnext, test_vit]", "--pretrained", "false"]
SIZES = ["--resolution", "32", "--epochs", "2", "--batch_size", "32", "--augment", "none", "--lr", "3e-4"]


def run_fit(datastore: Path, run: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "training", "fit", "--datastore", str(datastore), "--output", str(run)]
    return subprocess.run(
        [*line, *FLAGS, *SIZES, *flags], cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False
    )


def curves(run: Path) -> dict[str, list[dict[str, float]]]:
    found = {}
    for learner in RunRecord.load(run).learners:
        with (learner_folder(run, learner.name) / METRICS).open(newline="") as file:
            found[learner.name] = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return found


def test_two_processes_train_as_one(tiny_datastore: Path, tmp_path: Path) -> None:
    for name, flags in {"one": [], "two": ["--devices", "2", "--strategy", "ddp"]}.items():
        done = run_fit(tiny_datastore, tmp_path / name, *flags)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("on the test split of") == 1
    one, two = curves(tmp_path / "one"), curves(tmp_path / "two")
    assert one.keys() == two.keys()
    for learner, rows in one.items():
        assert [row["epoch"] for row in two[learner]] == [1, 2]
        # Shares of a batch differ by an image, which the mean over an epoch's training loss doesn't weigh.
        for figure, tolerance in (("train_loss", 1e-2), ("val_loss", 1e-3)):
            ours, theirs = ([row[figure] for row in curve] for curve in (rows, two[learner]))
            np.testing.assert_allclose(theirs, ours, rtol=tolerance)


def test_a_share_of_a_batch_is_an_image_at_least(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--batch_size is 4, less than one image for each of 8 processes"):
        FitSettings(datastore=tmp_path, output=tmp_path, batch_size=4, devices=4, num_nodes=2)


@pytest.mark.parametrize("values", [{"cluster": "auto"}, {"budget": "20m"}])
def test_one_way_of_being_many(tmp_path: Path, values: dict[str, str]) -> None:
    with pytest.raises(UserError, match="--devices and --num_nodes"):
        FitSettings(datastore=tmp_path, output=tmp_path, devices=2, **values)


def test_several_machines_share_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="s3://bucket/run: several machines need"):
        FitSettings(datastore=tmp_path, output=Path("s3://bucket/run"), num_nodes=2)


def test_a_comparison_is_one_process(tmp_path: Path) -> None:
    settings = CompareSettings(output=tmp_path / "o", datastores=[tmp_path], techniques=["baseline"])
    with pytest.raises(UserError, match="are of fit"):
        compare(settings, FitSettings(datastore=tmp_path, output=tmp_path, devices=2))
