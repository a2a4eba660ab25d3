"""Learners in parallel, on Ray: on the cores of one machine, or on those of a cluster that shares the output folder.

On a CPU two learners on a core each are trained faster than one after the other on both: not all of a step is parallel.
"""

from dataclasses import replace

import ray
import torch
from ray.exceptions import RayTaskError
from rich.console import Console

from tailstack.cluster import connect, share_of_machine
from tailstack.errors import UserError
from training.cycles import train_in_cycles
from training.dataset import TrainingData
from training.learner import Audience
from training.settings import FitSettings
from training.task import Task

_TRIES = 3
"""Of a learner whose node is lost; each goes on from its last checkpoint."""


def train_on_cluster(tasks: list[Task], data: TrainingData, classes: list[str], settings: FitSettings) -> None:
    """Train every learner as a task of its own, with the cores and the GPU that it states.

    Raises:
        UserError: there is no such cluster, none of its machines has so many cores, or a learner can't be trained.
    """
    connect(settings.cluster)
    try:
        cpus, gpus = share_of_machine("--cpus_per_learner", settings.cpus_per_learner or 1)
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=_TRIES)(_train)
        shared = ray.put(data)
        absolute = [
            replace(task, folder=task.folder.resolve(), start=task.start.resolve() if task.start else None)
            for task in tasks
        ]
        ray.get([remote.remote(task, shared, classes, settings, cpus) for task in absolute])
    except RayTaskError as error:
        # As a text it is the traceback of a process that the user doesn't know of.
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from error
        raise
    finally:
        ray.shutdown()


def _train(task: Task, data: TrainingData, classes: list[str], settings: FitSettings, cpus: int) -> None:
    torch.set_num_threads(cpus)
    train_in_cycles(task, data, classes, settings, Audience(Console()))
