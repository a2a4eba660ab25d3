"""The speedrun: real training of a tiny recipe, and the leaderboard that it enters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.race import TARGET, SpeedrunSettings, page, run_seeds
from tailstack.errors import UserError
from tests.conftest import ROOT

TINY = {
    "technique": "baseline",
    "architectures": ["lcnet_035"],
    "pretrained": False,
    "resolution": 32,
    "epochs": 1,
    "num_workers": 0,
}


def speedrun(datastore: Path, folder: Path, recipe: dict[str, object]) -> "subprocess.CompletedProcess[str]":
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    line = [sys.executable, "benchmarks/speedrun.py", "--datastore", str(datastore), "--seeds", "2", "--note", "tiny"]
    line += ["--recipe", str(folder / "recipe.yaml"), "--leaderboard", str(folder / "board.json")]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)


def test_a_recipe_is_trained_once_a_seed_and_enters_the_leaderboard(tiny_datastore: Path, tmp_path: Path) -> None:
    done = speedrun(tiny_datastore, tmp_path, TINY)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "board.json").read_text())
    assert len(entry["seconds_by_seed"]) == len(entry["top1_by_seed"]) == 2
    assert entry["top1"] == round(sum(entry["top1_by_seed"]) / 2, 4)
    assert entry["counts"] is (entry["top1"] >= TARGET)
    assert entry["recipe"] == TINY
    assert "| tiny |" in (tmp_path / "board.md").read_text()


def test_a_recipe_that_fit_refuses(tiny_datastore: Path, tmp_path: Path) -> None:
    done = speedrun(tiny_datastore, tmp_path, {**TINY, "epochs": 0})
    assert done.returncode == 1
    assert "--epochs is 0" in done.stderr
    assert not (tmp_path / "board.json").exists()


def test_no_seed_is_refused(tiny_datastore: Path) -> None:
    with pytest.raises(UserError, match="--seeds is 0"):
        run_seeds(SpeedrunSettings(tiny_datastore, seeds=0))


def test_the_fastest_that_counts_stands_first() -> None:
    machine = {"cores_of_others": 0.0}
    entries = [
        {"seconds": s, "top1": 0.8, "counts": c, "date": "2026-01-01", "note": n, "machine": machine}
        for s, c, n in ((50.0, False, "too fast"), (300.0, True, "slow"), (200.0, True, "quick"))
    ]
    rows = [line.split(" | ")[4] for line in page(entries).splitlines()[-3:]]
    assert rows == ["quick", "slow", "too fast"]
