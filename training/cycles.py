"""One learner in one cycle of the learning rate, or in two, whose ends are averaged.

Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018. The second cycle starts
from the weights of the first, at full resolution and with all layers; each is a training of its own, in its own folder.
"""

import dataclasses

from tailstack.files import make_folder, write_text
from tailstack.run import WEIGHTS_FILE
from training.dataset import TrainingData
from training.learner import METRICS, Audience, as_csv, read_log
from training.settings import FitSettings
from training.task import Task, train_task
from training.techniques import LearnerPlan

FIRST, SECOND = "first-cycle", "second-cycle"
MEAN = 0.5
"""Share of the first cycle's weights. On photos left out of training the mean gave Lite0, 1 and 2 at ratio 0.1 half a
point to nearly a whole one more than the first cycle's end."""
_SEEDS_APART = 500
"""From a learner's seed to that of its second cycle: the seeds of learners are 1 apart, those of runs 1,000."""


def train_in_cycles(
    task: Task, data: TrainingData, classes: list[str], settings: FitSettings, audience: Audience
) -> None:
    """Train the learner, from where it stopped, and write its weights and its log into the task's folder.

    Raises:
        UserError, KeyboardInterrupt: as of `training.task.train_task`.
    """
    if settings.second_cycle is None:
        train_task(task, data, classes, settings, audience)
        return
    folder = task.folder
    first = dataclasses.replace(task, folder=folder / FIRST)
    second = Task(second_plan(task.plan), folder / SECOND, first.folder / WEIGHTS_FILE, MEAN)
    cycles = ((first, settings), (second, dataclasses.replace(settings, epochs=settings.second_cycle)))
    for cycle, chosen in cycles:
        if not (make_folder(cycle.folder) / WEIGHTS_FILE).exists():
            train_task(cycle, data, classes, chosen, audience)
    write_text(folder / METRICS, as_csv(joined(read_log(first.folder), read_log(second.folder))))
    (second.folder / WEIGHTS_FILE).replace(folder / WEIGHTS_FILE)
    (first.folder / WEIGHTS_FILE).unlink()


def second_plan(plan: LearnerPlan) -> LearnerPlan:
    """Return how a learner's second cycle is trained: in another order, and from its start as the first cycle ends."""
    recipe = dataclasses.replace(plan.recipe, grow_from=0, freeze=0.0, deferred=0.0)
    return dataclasses.replace(plan, name=f"{plan.name}, second cycle", seed=plan.seed + _SEEDS_APART, recipe=recipe)


def joined(first: list[dict[str, float]], second: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the rows of both logs as one, in which epochs and seconds go on."""
    seconds = first[-1]["seconds"]
    rows = [*first, *({**row, "seconds": seconds + row["seconds"]} for row in second)]
    return [{**row, "epoch": epoch} for epoch, row in enumerate(rows, 1)]
