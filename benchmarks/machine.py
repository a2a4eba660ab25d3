"""What the figures were measured on."""

import importlib.metadata
import os
import platform
import time
from typing import Any

import psutil

from tailstack.machine import cpu_name
from tailstack.session import runtime_version

PACKAGES = ("numpy", "openvino", "pillow", "timm", "torch")
_QUIET_S = 3.0


def describe_machine(provider: str, threads: int | None) -> dict[str, Any]:
    """Return processor, memory, system and versions.

    Args:
        provider: the execution provider that runs the graph.
        threads: threads of one inference; None where only its server knows.
    """
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "provider": provider,
        "threads": threads,
        "versions": {"python": platform.python_version(), "onnxruntime": runtime_version(), **_versions()},
    }


class OtherLoad:
    """How many cores other processes (and, on a virtual machine, other guests) take while something is measured."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._start = time.perf_counter()
        self._others = self._seconds_of_others()

    def cores(self) -> float:
        """Return the mean number of cores taken by others since the beginning."""
        elapsed = time.perf_counter() - self._start
        return max(0.0, (self._seconds_of_others() - self._others) / elapsed)

    def _seconds_of_others(self) -> float:
        times, own = psutil.cpu_times(), self._process.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts the time of guests in that of users as well.
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        ours = own.user + own.system + own.children_user + own.children_system
        return float(sum(times) - guests - idle - ours)


def cores_of_others() -> float:
    """Return how many cores are taken while nothing of ours runs: servers under measurement would count as others."""
    others = OtherLoad()
    time.sleep(_QUIET_S)
    return round(others.cores(), 2)


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a file can be measured without torch
    return versions
