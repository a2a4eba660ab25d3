"""The command `fit`: a datastore -> a trained run."""

import dataclasses
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from tailstack import datastore as datastores
from tailstack.datastore import Datastore, Split
from tailstack.errors import UserError
from tailstack.files import make_folder, read_json, write_json
from tailstack.network import architecture_config
from tailstack.remote import fetch, push, spelled
from tailstack.run import CONFIG_FILE, SPLIT_FILE, WEIGHTS_FILE, RunRecord, learner_folder
from training.cycles import train_in_cycles
from training.dataset import TrainingData, common_image_size, load_pixels
from training.evaluation import evaluate_run, results_table
from training.learner import Audience, OnEpoch
from training.longtail import stratified_split
from training.memory import keep_freed_memory
from training.pace import Pace, within_budget
from training.pretrained import fetch_pretrained
from training.settings import SHARED_SETTINGS, FitSettings
from training.sharing import adopt, copy_learner, images_digest, note_origin, origin
from training.task import Task, class_factors, quieten
from training.teacher import START_SHARE, Teacher
from training.techniques import LearnerPlan, completed, find_technique, plan_learners, recipe_of


def fit(
    settings: FitSettings, share: Path | None = None, on_epoch: OnEpoch | None = None, given: Collection[str] = ()
) -> RunRecord:
    """Train every learner of the technique, evaluate them and their ensemble on the test split, and write the run.

    Args:
        settings: of the run.
        share: folder of runs with which learners of the same origin are shared.
        on_epoch: called with each new row of a learner's metrics.
        given: names of settings that a budget leaves as they are.

    Raises:
        UserError: a setting, the datastore or the output folder can't be used, or the training of a learner diverged.
        KeyboardInterrupt: the user stopped it; the same settings go on where it was.
        SystemExit: in every process but the first of those that train learners together, once they are trained.
    """
    began = time.monotonic()
    quieten()
    keep_freed_memory()
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # Lightning sets it on its function
    console = Console(quiet=not first)
    _check_architectures(settings)
    store = datastores.load(settings.datastore)
    rank_zero_only(fetch)(settings.output, missing_ok=True)
    class_factors(settings, store.classes)
    pace = None
    if settings.budget:
        settings, pace = within_budget(settings, store, given, console, began)
    settings = completed(settings)
    teacher = Teacher.load(settings.teacher) if settings.teacher else None
    run = _open_run(settings)
    rank_zero_only(push)(settings.output)
    image_size = common_image_size(store, settings.resolution)
    train, val = _training_split(store, settings, run, teacher)
    plans = plan_learners(settings, train.labels)
    if teacher and find_technique(settings.technique).keeps_others:
        plans = _with_others(plans[0], teacher, train, settings)
    if pace:
        pace.begin([plan.name for plan in plans])
    pixels = load_pixels({"train": train, "val": val, "test": store.test}, image_size)
    data = TrainingData(
        pixels["train"],
        train.labels,
        pixels["val"],
        val.labels,
        digest=images_digest(run / SPLIT_FILE, train, val),
        answers=teacher.answers(train, pixels["train"], image_size, run, share) if teacher else None,
    )
    todo = [
        Task(
            plan,
            learner_folder(run, plan.name),
            teacher.start(plan, settings.resolution) if teacher else None,
            START_SHARE,
        )
        for plan in plans
    ]
    todo = [task for task in todo if not _is_done(task, origin(task.plan, data, image_size, settings), share, console)]
    _train(todo, data, store.classes, settings, Audience(console, _pushing(settings, on_epoch)), pace)
    if not first:
        sys.exit()  # the first process does the rest
    record = evaluate_run(plans, store, image_size, data, pixels["test"], settings)
    record.save(run)
    push(settings.output)
    console.print(results_table(record))
    console.print(
        f"Next: python -m export {spelled(settings.output)} --output models/ensemble.onnx",
        highlight=False,
        soft_wrap=True,
    )
    return record


def _check_architectures(settings: FitSettings) -> None:
    for architecture in settings.architectures:
        if architecture_config(architecture).get("fixed_input_size") and recipe_of(settings).grow_from:
            raise UserError(f"{architecture} is built for one resolution, and can't grow: --grow_from 0")


def check(settings: FitSettings, store: Datastore) -> None:
    """Refuse what `fit` would refuse of these settings on this datastore, before it is its turn.

    Raises:
        UserError: a setting can't be used.
    """
    _check_architectures(settings)
    class_factors(settings, store.classes)
    stay = _held_out(store, settings).get("train")
    plan_learners(completed(settings), store.train.labels if stay is None else store.train.labels[stay])


def _with_others(student: LearnerPlan, teacher: Teacher, train: Split, settings: FitSettings) -> list[LearnerPlan]:
    """Copy the teacher's learners into the run, but for the student's twin, and return the plans of all.

    Raises:
        UserError: the student has no twin, or is to have another resolution than the learners beside it, or these were
            made by more than one training themselves.
    """
    own = plan_learners(teacher.settings(), train.labels)
    if [plan.name for plan in own] != [learner.name for learner in teacher.record.learners]:
        raise UserError(f"{teacher.run} has a student of another run in it: teach that run's anew instead")
    twin = teacher.twin(student)
    if twin is None:
        names = ", ".join(dict.fromkeys(learner.architecture for learner in teacher.record.learners))
        raise UserError(f"{teacher.run} has no {student.architecture} whose place the student could take, but {names}")
    if {learner.resolution for learner in teacher.record.learners} != {settings.resolution}:
        raise UserError(f"--resolution {settings.resolution} is not that of the learners of {teacher.run}, which stay")
    for learner in teacher.record.learners:
        folder = make_folder(learner_folder(settings.run, learner.name))
        if learner is not twin and not (folder / WEIGHTS_FILE).exists():
            copy_learner(learner_folder(teacher.run, learner.name), folder)
    return [dataclasses.replace(student, name=twin.name) if plan.name == twin.name else plan for plan in own]


def _pushing(settings: FitSettings, on_epoch: OnEpoch | None) -> OnEpoch:
    """Return what is called with each new row of a learner's metrics: a run in an object store is there up to date."""

    def pushed(row: dict[str, float]) -> None:
        rank_zero_only(push)(settings.output)
        if on_epoch:
            on_epoch(row)

    return pushed


def _is_done(task: Task, source: dict[str, Any], share: Path | None, console: Console) -> bool:
    """Return whether a learner needs no training, here or because another run has it; else prepare its folder."""
    make_folder(task.folder)
    if (task.folder / WEIGHTS_FILE).exists():
        console.print(f"{task.plan.name}: already trained", highlight=False)
        return True
    if share and adopt(task.folder, source, share):
        console.print(f"{task.plan.name}: taken from another run", highlight=False)
        return True
    note_origin(task.folder, source)
    return False


def _train(
    tasks: list[Task],
    data: TrainingData,
    classes: list[str],
    settings: FitSettings,
    audience: Audience,
    pace: Pace | None,
) -> None:
    if settings.cluster and tasks:
        try:
            from training.cluster import train_on_cluster  # noqa: PLC0415 (Ray is an extra)
        except ModuleNotFoundError as error:
            raise UserError("Ray isn't installed: pip install 'tailstack[cluster]'") from error
        train_on_cluster(tasks, data, classes, settings)
        return
    for architecture in {task.plan.architecture for task in tasks if settings.pretrained and not task.start}:
        fetch_pretrained(architecture, settings.resolution)
    for task in tasks:
        chosen, listener = pace.lead(task.plan.name, settings, audience) if pace else (settings, audience)
        train_in_cycles(task, data, classes, chosen, listener)


def _open_run(settings: FitSettings) -> Path:
    """Make the run's folder, or take it up again if it was made with the same settings."""
    run = make_folder(settings.run)
    config = run / CONFIG_FILE
    if config.exists():
        if differing := changed_settings(_read_config(config), settings.to_dict()):
            raise UserError(f"{run} was made with other settings ({'; '.join(differing)}): choose another --output")
    elif any(run.iterdir()):
        raise UserError(f"output folder {run} has files that are not a run's: choose another --output")
    settings.save(config)
    return run


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in which settings that decide what is learnt those of `now` differ from what was made before."""
    return [
        f"{name} {before.get(name)} there, {value} now"
        for name, value in now.items()
        if name not in SHARED_SETTINGS and before.get(name) != value
    ]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged, or not of a run: mend it, or choose another --output")
    return content


def _training_split(store: Datastore, settings: FitSettings, run: Path, teacher: Teacher | None) -> tuple[Split, Split]:
    """Return what is trained on and what validates, as `split.json` has it."""
    path = run / SPLIT_FILE
    digests = store.digests()
    if not path.exists():
        drawn = {"datastore_sha256": digests, **_held_out(store, settings)}
        # What validates a student has to be new to its teacher too.
        write_json(path, read_json(teacher.run / SPLIT_FILE) if teacher else drawn, indent=None)
    split = read_json(path)
    if split["datastore_sha256"] != digests:
        begun = settings.teacher or run
        raise UserError(f"datastore {store.path} has changed since {begun} was begun: choose another --output")
    if store.val is not None:
        return store.train, store.val
    return store.train.subset(np.array(split["train"])), store.train.subset(np.array(split["val"], dtype=np.int64))


def _held_out(store: Datastore, settings: FitSettings) -> dict[str, list[int]]:
    if store.val is not None:
        return {}
    stay, held = stratified_split(store.train.labels, settings.val_fraction, settings.seed)
    return {"train": stay.tolist(), "val": held.tolist()}
