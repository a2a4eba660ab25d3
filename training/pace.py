"""A run that keeps to its budget: the plan that it was begun with, and how far its learners are.

The plan lies in the run's `budget.json`, so that the same command goes on with it. Where learners took more or less
time than expected, those to come are trained for fewer or more epochs; so is the one that trains, once its first epoch
is done; and one that would end far too late all the same is stopped.
"""

import dataclasses
import math
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from tailstack.datastore import Datastore
from tailstack.errors import UserError
from tailstack.files import read_json, write_json
from tailstack.network import architecture_config
from tailstack.run import WEIGHTS_FILE, learner_folder
from training.budget import FILL, Plan, Wishes, Workload, choose, describe, epochs_that_fit, load_table, next_epochs
from training.duration import in_words, seconds_of
from training.learner import Audience, seconds_trained
from training.longtail import stratified_split
from training.settings import FitSettings
from training.stopwatch import measure
from training.techniques import find_technique, plan_learners

BUDGET_FILE = "budget.json"
_TIMED_AT = (64, 128)
_WELL_FILLED = 0.9
"""Share of the budget from which on a plan that can't be longer is nothing to talk about."""
_TOO_LATE = 1.05
"""Share of the budget at which no learner begins another epoch."""


@dataclasses.dataclass
class Ledger:
    """The content of `budget.json`."""

    plan: Plan
    adapts: bool
    """Whether epochs follow the time that is left: not where the user has set them."""
    epochs: dict[str, int]
    """Of each learner that was begun."""


class Pace:
    """What a run's budget decides while it trains."""

    def __init__(self, settings: FitSettings, ledger: Ledger, began: float) -> None:
        self._run = settings.run
        self._budget = seconds_of(settings.budget or "")
        self._ledger = ledger
        self._began = began - sum(seconds_trained(folder) for folder in self._run.glob("learners/*"))
        self._names: list[str] = []

    def begin(self, names: list[str]) -> None:
        """Take the names of all learners, in order, and write down the plan."""
        self._names = names
        self._save()

    def lead(self, name: str, settings: FitSettings, audience: Audience) -> tuple[FitSettings, Audience]:
        """Return the settings of the learner that is next, and who may stop it."""
        if not self._ledger.adapts:
            return settings, audience
        if name not in self._ledger.epochs:
            left = self._began + self._target() - time.monotonic() - self._final_of_earlier(name)
            epochs = next_epochs(self._ledger.plan.epochs, self._expected(name), self._slowness(), left)
            if epochs != self._ledger.plan.epochs:
                line = f"{name}: {epochs} epochs instead of {self._ledger.plan.epochs}, by the time that is left"
                audience.console.print(line, highlight=False)
            self._ledger.epochs[name] = epochs
            self._save()

        def length(rows: list[dict[str, float]]) -> int:
            # Where one is all, the learning rate is at its end already.
            if len(rows) == 1 < self._ledger.epochs[name]:
                self._follow_first_epoch(name, rows[0]["seconds"], audience.console)
            return len(rows) if self._is_late(name, rows, audience.console) else self._ledger.epochs[name]

        return (
            dataclasses.replace(settings, epochs=self._ledger.epochs[name]),
            dataclasses.replace(audience, length=length),
        )

    def _follow_first_epoch(self, name: str, seconds: float, console: Console) -> None:
        """Choose the learner's epochs anew, now that it is known how long one takes."""
        place = self._names.index(name)
        finals = sum(self._ledger.plan.final[: place + 1])
        left = self._began + self._target() - time.monotonic() + seconds - finals
        own, *later = self._expected(name)
        share = (own - self._ledger.plan.final[place]) / (own - self._ledger.plan.final[place] + sum(later))
        epochs = epochs_that_fit(self._ledger.plan, place, seconds, left * share)
        if epochs != self._ledger.epochs[name]:
            line = f"{name}: {epochs} epochs instead of {self._ledger.epochs[name]}, by the time of the first"
            console.print(line, highlight=False, soft_wrap=True)
            self._ledger.epochs[name] = epochs
            self._save()

    def _target(self) -> float:
        # A plan that the table ends is not stretched to fill the budget.
        return sum(self._ledger.plan.seconds) / FILL if self._ledger.plan.longest else FILL * self._budget

    def _expected(self, name: str) -> list[float]:
        return list(self._ledger.plan.seconds[self._names.index(name) :])

    def _slowness(self) -> float:
        done = [name for name in self._names if (learner_folder(self._run, name) / WEIGHTS_FILE).exists()]
        taken = sum(seconds_trained(learner_folder(self._run, name)) for name in done)
        plan = self._ledger.plan
        each = dict(zip(self._names, zip(plan.seconds, plan.final, strict=True), strict=True))
        planned = {name: seconds - final for name, (seconds, final) in each.items()}
        expected = sum(planned[name] * self._ledger.epochs.get(name, plan.epochs) / plan.epochs for name in done)
        return taken / expected if taken and expected else 1.0

    def _final_of_earlier(self, name: str) -> float:
        return sum(self._ledger.plan.final[: self._names.index(name)])

    def _is_late(self, name: str, rows: list[dict[str, float]], console: Console) -> bool:
        """Return whether the learner's next epoch would leave too little time for itself and the learners to come."""
        if rows[-1]["epoch"] >= self._ledger.epochs[name]:
            return False
        # The last one: epochs become slower where the resolution grows.
        an_epoch = rows[-1]["seconds"] - (rows[-2]["seconds"] if len(rows) > 1 else 0)
        own = self._ledger.plan.final[self._names.index(name)]
        reserved = self._final_of_earlier(name) + own + sum(self._expected(name)[1:]) / 2
        late = time.monotonic() + an_epoch + reserved > self._began + _TOO_LATE * self._budget
        if late:
            console.print(f"{name}: stopped early, the machine is slower than it was when timed", highlight=False)
        return late

    def _save(self) -> None:
        write_json(self._run / BUDGET_FILE, TypeAdapter(Ledger).dump_python(self._ledger, mode="json"))


def within_budget(
    settings: FitSettings, store: Datastore, given: Collection[str], console: Console, began: float
) -> tuple[FitSettings, Pace]:
    """Choose what the budget leaves open, or take up the plan of a run that was begun, and say what it is.

    Args:
        settings: with a budget.
        store: the data.
        given: names of settings that the user chose, which stay.
        console: where the plan is told.
        began: `time.monotonic()` at the start of the command.

    Raises:
        UserError: the budget is too short for anything, or the technique or an architecture doesn't exist.
    """
    path = settings.run / BUDGET_FILE
    if path.exists():
        ledger = _read(path)
    else:
        ledger = Ledger(_plan(settings, store, given, began), adapts="epochs" not in given, epochs={})
        _tell(ledger.plan, settings, console)
    plan = ledger.plan
    values: dict[str, Any] = {name: getattr(plan, name) for name in ("resolution", "grow_from", "epochs")}
    values["architectures"] = list(plan.architectures)
    chosen = {name: value for name, value in values.items() if name not in given}
    return dataclasses.replace(settings, **chosen), Pace(settings, ledger, began)


def _plan(settings: FitSettings, store: Datastore, given: Collection[str], began: float) -> Plan:
    rows = load_table()
    wishes = _wishes(settings, given)
    named = wishes.architectures or {name for row in rows for name in row.architectures}
    resolution = wishes.resolution
    timed_at = (math.ceil(resolution / 2), resolution) if resolution else _TIMED_AT
    speeds = measure(named, len(store.classes), timed_at, settings)
    left = FILL * seconds_of(settings.budget or "") - (time.monotonic() - began)
    return choose(rows, speeds, _workload(settings, store), left, wishes)


def _wishes(settings: FitSettings, given: Collection[str]) -> Wishes:
    stacked = find_technique(settings.technique).stacked
    architectures = tuple(settings.architectures if stacked else settings.architectures[:1])
    fixed = any(architecture_config(name).get("fixed_input_size") for name in architectures)
    return Wishes(
        architectures=architectures if "architectures" in given else None,
        resolution=settings.resolution if "resolution" in given else None,
        grow_from=settings.grow_from if "grow_from" in given else None,
        epochs=settings.epochs if "epochs" in given else None,
        stacked=stacked,
        may_grow=not fixed,
    )


def _workload(settings: FitSettings, store: Datastore) -> Workload:
    labels, val = store.train.labels, 0 if store.val is None else len(store.val)
    if store.val is None:
        stay, held = stratified_split(labels, settings.val_fraction, settings.seed)
        labels, val = labels[stay], len(held)
    bags = plan_learners(dataclasses.replace(settings, architectures=settings.architectures[:1]), labels)
    train = round(float(np.mean([len(plan.samples) for plan in bags])))
    return Workload(train, val, len(store.test), len(bags))


def _tell(plan: Plan, settings: FitSettings, console: Console) -> None:
    console.print(
        f"Budget {settings.budget}: {describe(plan)}; takes about {in_words(sum(plan.seconds))}.",
        highlight=False,
        soft_wrap=True,
    )
    if plan.top1 is None:
        expected = "No accuracy is foretold: the table of measured runs has no such learners at this resolution."
    else:
        row = plan.row
        expected = (
            f"Expect a top-1 of about {plan.top1:.2f} on data like the table's: {row.top1:.3f} was measured with "
            f"{row.epochs} epochs and loss {row.loss} ({row.source}). Your photos may be easier or harder."
        )
    console.print(expected, highlight=False, soft_wrap=True)
    if plan.longest and sum(plan.seconds) < _WELL_FILLED * seconds_of(settings.budget or ""):
        console.print("That is less than the budget: longer training has not been measured.", highlight=False)


def _read(path: Path) -> Ledger:
    try:
        return TypeAdapter(Ledger).validate_python(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path} is damaged, or not of this version's form: choose another --output") from error
