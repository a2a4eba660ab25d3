"""The command `sweep`: any setting given as a list is tried value by value, on Ray Tune."""

import csv
import dataclasses
import io
import itertools
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from rich.console import Console
from rich.table import Table

from tailstack import datastore as datastores
from tailstack.cluster import connect, share_of_machine
from tailstack.datastore import Datastore
from tailstack.errors import UserError
from tailstack.files import make_folder, read_json, write_json, write_text
from tailstack.remote import is_remote
from tailstack.run import ENSEMBLE_FILE, WEIGHTS_FILE
from training.cells import Cell, load_cell
from training.fit import changed_settings, check, fit
from training.longtail import stratified_split
from training.settings import FitSettings, SweepSettings

METRIC = "val_top1"
PROGRESS = "progress"
_STATE = "tune"
_TRIED = "sweep.json"
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
        UserError: nothing is swept, a setting, the datastore or the cluster can't be used, `output` has another sweep,
            or no trial was finished.
        KeyboardInterrupt: the user stopped it; the trials go on where they were.
    """
    if not swept:
        raise UserError('give a setting as a list to sweep it: --lr "[1e-3, 2e-3]"')
    store = datastores.load(base.datastore)
    output = make_folder(settings.output).resolve()
    points = _points(swept, settings.samples, base.seed)
    runs = [chosen(_anywhere(base), point, output) for point in points]
    for run in runs:
        _check(run, store)  # what no run can have is found before any training
    _open_sweep(settings, base, swept, store)
    results = _try_all(settings, runs, output)
    for point, run in zip(points, runs, strict=True):
        _save_cell(point, run.output, chosen(base, point, settings.output), settings.output)
    rows = [_row(point, result, settings.output) for point, result in zip(points, results, strict=True)]
    rows.sort(key=lambda row: ("test_top1" not in row, -row[METRIC]))  # only a finished trial may be the best
    write_text(output / "sweep.csv", _as_csv(rows))
    _print(rows, swept)
    if "test_top1" not in rows[0]:
        reasons = [str(result.error).strip().splitlines()[-1].strip() for result in results if result.error]
        raise UserError(f"no trial was finished: {'; '.join(dict.fromkeys(reasons))}")
    best = {name: rows[0][name] for name in swept}
    place = os.path.relpath(chosen(base, best, output).output)
    Console().print(f"Best on validation: {_name(best)}, in {place}", highlight=False, soft_wrap=True)
    return rows


def chosen(base: FitSettings, point: Point, output: Path) -> FitSettings:
    """Return the settings of one trial."""
    values: dict[str, Any] = {name: [value] if name == "architectures" else value for name, value in point.items()}
    return dataclasses.replace(base, **values, output=output / "runs" / _name(point))


def _anywhere(base: FitSettings) -> FitSettings:
    """Return the settings for processes that may work in another folder."""
    return base if is_remote(base.datastore) else dataclasses.replace(base, datastore=base.datastore.resolve())


def _check(run: FitSettings, store: Datastore) -> None:
    check(run, store)
    if store.val is None and not len(stratified_split(store.train.labels, run.val_fraction, run.seed)[1]):
        raise UserError(f"--val_fraction {run.val_fraction} holds no image out, by which trials could be compared")


def _open_sweep(settings: SweepSettings, base: FitSettings, swept: dict[str, list[Any]], store: Datastore) -> None:
    """Note what is tried, or refuse to go on with something else: Tune knows the trials by their numbers alone."""
    fixed = {name: value for name, value in base.to_dict().items() if name not in swept}
    tried = {"swept": swept, "samples": settings.samples, "stop_losers": settings.stop_losers, **fixed}
    path = settings.output / _TRIED
    if path.exists():
        before = read_json(path)
        differing = changed_settings(before["settings"], tried)
        if before["datastore_sha256"] != store.digests():
            differing.append(f"{store.path} has other images or labels now")
        if differing:
            raise UserError(f"{settings.output} has another sweep ({'; '.join(differing)}): choose another --output")
    elif (settings.output / _STATE).exists():
        raise UserError(f"{settings.output} has a sweep that doesn't say what it tries: choose another --output")
    write_json(path, {"datastore_sha256": store.digests(), "settings": tried})


def _points(swept: dict[str, list[Any]], samples: int, seed: int) -> list[Point]:
    grid = [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]
    if samples and samples < len(grid):
        return random.Random(seed).sample(grid, samples)
    return grid


def _name(point: Point) -> str:
    return ",".join(f"{name}={value}" for name, value in point.items()).replace("/", "-")


def train_trial(run: FitSettings, shortest: int, tell: Callable[[dict[str, float]], None]) -> None:
    """Train one point, and tell how well it does; a trial that was interrupted goes on in its run's folder.

    Trials are compared by their first training alone, at the same share of its epochs: a second learner or cycle begins
    anew, and the learning rate of a longer training falls later. Its last epoch isn't told: a trial that is stopped
    then would have neither weights nor results. Those that are finished are compared by their ensembles.

    Args:
        run: settings of the point.
        shortest: epochs of the shortest trial, which are the unit of progress.
        tell: takes the figures of `tune.report`.
    """

    def tell_epoch(row: dict[str, float]) -> None:
        is_first = not any(run.output.rglob(WEIGHTS_FILE))
        if is_first and row["epoch"] < run.epochs:
            progress = shortest * row["epoch"] / run.epochs
            tell({METRIC: row[METRIC], "epochs_done": int(row["epoch"]), PROGRESS: progress})

    record = fit(run, on_epoch=tell_epoch)
    epochs = run.epochs + (run.second_cycle or 0)
    tell({METRIC: record.validation["top1"], "epochs_done": epochs, PROGRESS: shortest})


def scheduler(shortest: int) -> ASHAScheduler:
    """Return what stops trials: half of them go on after each doubling of the epochs.

    Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020.
    """
    return ASHAScheduler(time_attr=PROGRESS, max_t=shortest, grace_period=min(2, shortest), reduction_factor=2)


def _try_all(settings: SweepSettings, runs: Sequence[FitSettings], output: Path) -> list[Any]:
    """Return Tune's result of each run, in their order."""
    connect(settings.cluster, log_to_driver=False)
    try:
        results = _tuner(settings, runs, output).fit()
        ended = [results[i] for i in range(len(results)) if _has_ended(results[i])]
    finally:
        ray.shutdown()
    # Tune takes a first Ctrl-C itself, notes how far the trials are, and returns as if all had ended.
    if len(ended) < len(runs):
        raise KeyboardInterrupt
    return sorted(ended, key=lambda result: result.config["point"])


def _has_ended(result: Any) -> bool:
    return result.error is not None or bool((result.metrics or {}).get("done"))


def _tuner(settings: SweepSettings, runs: Sequence[FitSettings], output: Path) -> tune.Tuner:
    shortest = min(run.epochs for run in runs)

    def trial(config: dict[str, int]) -> None:
        train_trial(runs[config["point"]], shortest, tune.report)

    cpus, gpus = share_of_machine("--cpus_per_trial", settings.cpus_per_trial)
    able = tune.with_resources(trial, {"cpu": cpus, "gpu": gpus})
    path = str(output / _STATE)
    if tune.Tuner.can_restore(path):
        return tune.Tuner.restore(path, able, resume_unfinished=True, restart_errored=True)
    return tune.Tuner(
        able,
        param_space={"point": tune.grid_search(list(range(len(runs))))},
        tune_config=tune.TuneConfig(
            metric=METRIC, mode="max", scheduler=scheduler(shortest) if settings.stop_losers else None
        ),
        run_config=tune.RunConfig(name=_STATE, storage_path=str(output), verbose=1),
    )


def _save_cell(point: Point, run: Path, named: FitSettings, output: Path) -> None:
    """Write the cell of a trial that was finished, with paths as the user wrote them: it is meant to be passed on."""
    if (run / ENSEMBLE_FILE).exists():
        cell = Cell.of_run(run).model_dump(mode="json")
        places = named.to_dict()
        cell["run"]["datastore"]["path"] = places["datastore"]
        cell["run"]["config"].update(datastore=places["datastore"], output=places["output"])
        write_json(_cell_path(point, output), cell, indent=None)


def _cell_path(point: Point, output: Path) -> Path:
    return output / "cells" / f"{_name(point)}.json"


def _row(point: Point, result: Any, output: Path) -> dict[str, Any]:
    metrics = result.metrics or {}
    row: dict[str, Any] = {**point, METRIC: metrics.get(METRIC, 0.0), "epochs_done": metrics.get("epochs_done", 0)}
    if _cell_path(point, output).exists():
        cell = load_cell(_cell_path(point, output))
        row["test_top1"] = cell.run.results["top1"]
        row["parameters"] = sum(learner.parameters for learner in cell.run.learners)
        row["seconds"] = round(cell.run.seconds, 1)
    return row


def _print(rows: list[dict[str, Any]], swept: dict[str, list[Any]]) -> None:
    table = Table(title="Sweep, the best on validation first")
    names = [*swept, *_COLUMNS]
    for name in names:
        table.add_column(name)
    for row in rows:
        table.add_row(*(_shown(row.get(name, "-")) for name in names))
    Console().print(table)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    names = [name for name in rows[0] if name not in _COLUMNS]
    writer = csv.DictWriter(text, fieldnames=[*names, *_COLUMNS], restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
