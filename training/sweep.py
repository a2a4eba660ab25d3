"""The command `sweep`: any setting given as a list is tried value by value, on Ray Tune."""

import csv
import dataclasses
import io
import itertools
import logging
import os
import random
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from rich.console import Console
from rich.table import Table

from tailstack.errors import UserError
from tailstack.files import make_folder, read_json, write_json, write_text
from training.cells import Cell
from training.fit import fit
from training.settings import FitSettings, SweepSettings

METRIC = "val_top1"
_STATE = "tune"
_COLUMNS = ("val_top1", "epochs_done", "test_top1", "parameters", "seconds")
Point = dict[str, Any]
"""The values of the swept settings in one trial."""


def sweep(settings: SweepSettings, base: FitSettings, swept: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Train a run for every combination of the swept values, and write what each reached.

    Args:
        settings: of the sweep.
        base: every setting that isn't swept.
        swept: values by the name of the setting; of `architectures`, each alone.

    Returns:
        A row a trial, the best on validation first, as in `sweep.csv`.

    Raises:
        UserError: nothing is swept, or a setting can't be used.
    """
    if not swept:
        raise UserError('give a setting as a list to sweep it: --lr "[1e-3, 2e-3]"')
    output = make_folder(settings.output).resolve()
    named = base
    base = dataclasses.replace(base, datastore=base.datastore.resolve())
    points = _points(swept, settings.samples, base.seed)
    for point in points:
        chosen(base, point, output)  # a value that no run can have is found before any training
    ray.init(address=settings.cluster, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        results = _tuner(settings, base, points, output).fit()
        by_number = {(results[i].config or {})["point"]: results[i] for i in range(len(results))}
    finally:
        ray.shutdown()
    for point in points:
        _save_cell(point, chosen(base, point, output).output, chosen(named, point, settings.output), settings.output)
    rows = [_row(point, by_number[number], settings.output) for number, point in enumerate(points)]
    rows.sort(key=lambda row: -row[METRIC])
    write_text(output / "sweep.csv", _as_csv(rows))
    _print(rows, swept, base, output)
    return rows


def chosen(base: FitSettings, point: Point, output: Path) -> FitSettings:
    """Return the settings of one trial."""
    values: dict[str, Any] = {name: [value] if name == "architectures" else value for name, value in point.items()}
    return dataclasses.replace(base, **values, output=output / "runs" / _name(point))


def _points(swept: dict[str, list[Any]], samples: int, seed: int) -> list[Point]:
    grid = [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]
    if samples and samples < len(grid):
        return random.Random(seed).sample(grid, samples)
    return grid


def _name(point: Point) -> str:
    return ",".join(f"{name}={value}" for name, value in point.items()).replace("/", "-")


def _tuner(settings: SweepSettings, base: FitSettings, points: list[Point], output: Path) -> tune.Tuner:
    def trial(config: dict[str, int]) -> None:
        """Train one point; a trial that was interrupted goes on in its run's folder."""
        run = chosen(base, points[config["point"]], output)
        reported = 0

        def report(row: dict[str, float]) -> None:
            nonlocal reported
            reported = int(row["epoch"])
            tune.report({METRIC: row[METRIC], "epochs_done": reported})

        record = fit(run, on_epoch=report)
        if not reported:
            tune.report({METRIC: record.validation["top1"], "epochs_done": base.epochs})

    cpus = settings.cpus_per_trial or os.cpu_count() or 1
    able = tune.with_resources(trial, {"cpu": cpus, "gpu": 1} if _has_gpu() else {"cpu": cpus})
    path = str(output / _STATE)
    if tune.Tuner.can_restore(path):
        return tune.Tuner.restore(path, able, resume_unfinished=True, restart_errored=True)
    # Half of the trials go on after each doubling of the epochs (Li et al., "A System for Massively Parallel
    # Hyperparameter Tuning", MLSys 2020).
    scheduler = ASHAScheduler(
        time_attr="epochs_done", max_t=max(2, base.epochs), grace_period=min(2, base.epochs), reduction_factor=2
    )
    return tune.Tuner(
        able,
        param_space={"point": tune.grid_search(list(range(len(points))))},
        tune_config=tune.TuneConfig(metric=METRIC, mode="max", scheduler=scheduler if settings.stop_losers else None),
        run_config=tune.RunConfig(name=_STATE, storage_path=str(output), verbose=1),
    )


def _has_gpu() -> bool:
    return bool(ray.cluster_resources().get("GPU", 0))


def _save_cell(point: Point, run: Path, named: FitSettings, output: Path) -> None:
    """Write the cell of a trial that was finished, with paths as the user wrote them: it is meant to be passed on."""
    if (run / "ensemble.json").exists():
        cell = Cell.of_run(run).model_dump(mode="json")
        cell["run"]["datastore"]["path"] = str(named.datastore)
        cell["run"]["config"].update(datastore=str(named.datastore), output=str(named.output))
        write_json(_cell_path(point, output), cell, indent=None)


def _cell_path(point: Point, output: Path) -> Path:
    return output / "cells" / f"{_name(point)}.json"


def _row(point: Point, result: Any, output: Path) -> dict[str, Any]:
    metrics = result.metrics or {}
    row: dict[str, Any] = {**point, METRIC: metrics.get(METRIC, 0.0), "epochs_done": metrics.get("epochs_done", 0)}
    if _cell_path(point, output).exists():
        cell = Cell.model_validate(read_json(_cell_path(point, output)))
        row["test_top1"] = cell.run.results["top1"]
        row["parameters"] = sum(learner.parameters for learner in cell.run.learners)
        row["seconds"] = round(cell.run.seconds, 1)
    return row


def _print(rows: list[dict[str, Any]], swept: dict[str, list[Any]], base: FitSettings, output: Path) -> None:
    table = Table(title="Sweep, the best on validation first")
    names = [*swept, *_COLUMNS]
    for name in names:
        table.add_column(name)
    for row in rows:
        table.add_row(*(_shown(row.get(name, "-")) for name in names))
    console = Console()
    console.print(table)
    best = {name: rows[0][name] for name in swept}
    run = os.path.relpath(chosen(base, best, output).output)
    console.print(f"Best on validation: {_name(best)}, in {run}", highlight=False, soft_wrap=True)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    names = [name for name in rows[0] if name not in _COLUMNS]
    writer = csv.DictWriter(text, fieldnames=[*names, *_COLUMNS], restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
