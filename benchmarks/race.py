"""How fast one fixed recipe reaches the course project's best accuracy, from the weights of the Lite packages on.

    python benchmarks/speedrun.py --datastore data/cifar50-imbalance-0.1 --note "what changed"

`python -m training fit` trains the recipe once a seed, each in a fresh folder and a process of its own. The time is
that of the whole command, imports, decoding and evaluation included. A recipe counts if the mean test accuracy of its
seeds is 0.7933 or more. It is chosen on validation; the test split only says whether it counts.
"""

import datetime
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from benchmarks.machine import cores_of_others, describe_machine
from benchmarks.report import show
from tailstack.errors import UserError
from tailstack.files import read_json, write_json, write_text
from tailstack.run import RunRecord

TARGET = 0.7933
"""Top-1 of the course project's best technique at imbalance ratio 0.1, at 224 pixels."""
ROOT = Path(__file__).parent.parent
RECIPE = Path(__file__).with_name("speedrun.yaml")
LEADERBOARD = ROOT / "results" / "speedrun.json"


@dataclass
class SpeedrunSettings:
    """Train one recipe until it is done, once a seed, and report its wall time and its mean test accuracy."""

    datastore: Path
    """The photos at ratio 0.1."""
    recipe: Path = RECIPE
    """Settings of `fit`."""
    seeds: int = 3
    """How many; they are 0, 1, 2, …"""
    note: str = ""
    """What changed; the run then enters the leaderboard."""
    leaderboard: Path = LEADERBOARD
    """Its page, of the same name but for the ending `.md`, lies beside it."""


def run_seeds(settings: SpeedrunSettings) -> dict[str, Any]:
    """Train every seed, and return the entry of the leaderboard.

    Raises:
        UserError: the recipe can't be read, `fit` refuses it, or there is no seed to train.
    """
    if settings.seeds < 1:
        raise UserError(f"--seeds is {settings.seeds}, and has to be 1 or more")
    if not settings.recipe.is_file():
        raise UserError(f"recipe {settings.recipe} doesn't exist")
    others, finished = [], []
    for seed in range(settings.seeds):
        # Between the seeds: learners on Ray run in processes that aren't descendants of this one for long.
        others.append(cores_of_others())
        finished.append(_run_seed(settings, seed))
    seconds = [entry[0] for entry in finished]
    accuracies = [entry[1].results["top1"] for entry in finished]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "note": settings.note,
        "seconds": round(statistics.mean(seconds), 1),
        "seconds_by_seed": [round(value, 1) for value in seconds],
        "top1": round(statistics.mean(accuracies), 4),
        "top1_by_seed": accuracies,
        "validation_top1": round(statistics.mean(entry[1].validation["top1"] for entry in finished), 4),
        "counts": statistics.mean(accuracies) >= TARGET,
        "recipe": yaml.safe_load(settings.recipe.read_text(encoding="utf-8")),
        "versions": finished[0][1].versions,
        "machine": {
            **describe_machine("torch", os.cpu_count() or 1),
            "cores_of_others": round(statistics.mean(others), 2),
        },
    }


def _run_seed(settings: SpeedrunSettings, seed: int) -> tuple[float, RunRecord]:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        line = [sys.executable, "-m", "training", "fit", "--config", str(settings.recipe.resolve())]
        line += ["--datastore", str(settings.datastore.resolve()), "--output", str(run), "--seed", str(seed)]
        start = time.perf_counter()
        if subprocess.run(line, cwd=ROOT, check=False).returncode:
            raise UserError(f"fit failed with the recipe {settings.recipe} and seed {seed}; its own words stand above")
        return time.perf_counter() - start, RunRecord.load(run)


def page(entries: list[dict[str, Any]]) -> str:
    """Return the leaderboard as Markdown, the fastest recipe that counts first."""
    head = f"""# Speedrun

Wall time on two cores until a recipe has trained one model that classifies the test photos of CIFAR-50 at imbalance
ratio 0.1 with top-1 {TARGET} or more, the mean of its seeds. `python benchmarks/speedrun.py` runs it.

| minutes | top-1 | counts | date | what changed | cores that others took between the seeds |
|---:|---:|---|---|---|---:|
"""
    ranked = sorted(entries, key=lambda entry: (not entry["counts"], entry["seconds"]))
    return head + "".join(_line(entry) for entry in ranked)


def _line(entry: dict[str, Any]) -> str:
    cells = [
        f"{entry['seconds'] / 60:.1f}",
        f"{entry['top1']:.4f}",
        "yes" if entry["counts"] else "no",
        entry["date"],
        entry["note"],
        str(entry["machine"]["cores_of_others"]),
    ]
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Parse the command line, train, print, and keep the leaderboard."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        exit_on_error=False, prog="python benchmarks/speedrun.py", description=SpeedrunSettings.__doc__
    )
    parser.add_class_arguments(SpeedrunSettings)
    settings = SpeedrunSettings(**parser.parse_args().as_dict())
    entry = run_seeds(settings)
    show(page([entry]))
    if settings.note:
        board = settings.leaderboard
        entries = [*(read_json(board) if board.exists() else []), entry]
        board.parent.mkdir(parents=True, exist_ok=True)
        write_json(board, entries)
        write_text(board.with_suffix(".md"), page(entries))
