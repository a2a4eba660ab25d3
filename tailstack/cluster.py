"""Connecting to a Ray cluster, and what a task may ask of it: one way for what trains and for what scores."""

import logging
import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from tailstack.errors import UserError


def connect(address: str | None, *, log_to_driver: bool = True) -> None:
    """Connect to a Ray cluster.

    Args:
        address: of it; None and `auto` take the one that runs on this machine, and start one if none does.
        log_to_driver: whether what tasks print is printed here.

    Raises:
        UserError: there is none at that address.
    """
    place = None if address == "auto" else address
    try:
        ray.init(place, include_dashboard=False, log_to_driver=log_to_driver, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"there is no Ray cluster at {address or 'auto'}: {error}") from error


def share_of_machine(flag: str, wanted: int) -> tuple[int, int]:
    """Return the cores and GPUs of a task, which one machine has to have: a GPU where any machine has one.

    Args:
        flag: by which the user asks for cores.
        wanted: cores; 0 takes all that the largest machine has for Ray, which in a container may be few of its own.

    Raises:
        UserError: no machine has so many; Ray would wait for one forever.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = 1 if any(machine.get("GPU") for machine in machines) else 0
    most = int(max((machine.get("CPU", 0) for machine in machines if machine.get("GPU", 0) >= gpus), default=0))
    cpus = wanted or max(most, 1)
    if cpus > most:
        raise UserError(f"{flag} is {cpus}, and the cluster's largest machine has {most} core(s)")
    return cpus, gpus
