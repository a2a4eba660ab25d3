"""How many replicas a load takes, and what they cost: from what was measured, and a queueing model.

    python benchmarks/capacity.py [--check true]

What an image costs the server comes from the report of `benchmarks/serving.py`, what of it is inference from that of
`benchmarks/eval.py`, both of one file. What a GPU does, and prices, are assumptions, and named so. The queue is that
of `benchmarks.queueing`; `--check` puts it beside the real server under loads that come at random.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.capacity_check import check_server
from benchmarks.capacity_report import draw, markdown
from benchmarks.queueing import Replica
from serving.settings import ServerSettings
from tailstack.errors import UserError
from tailstack.files import read_json, write_json, write_text

QUEUE_SHARE = 0.25
"""At which deploy/kubernetes adds pods: images in the server, as a share of `TAILSTACK_MAX_QUEUE`."""
SHARE = 0.99
"""Of the images that are to be answered in time."""
NEVER_ALONE = 2
"""Replicas at least, so that one may go."""
_HOURS = 730
"""Of a month."""


@dataclass
class CapacitySettings:
    """Plan replicas for CPU and GPU, and write docs/capacity.md."""

    serving: Path = Path("results/serving/serving.json")
    """Report of `benchmarks/serving.py`: the server's speed, delay and processor time."""
    inference: Path = Path("results/cifar50-0.1-stacking-wl/eval.json")
    """Report of `benchmarks/eval.py` on the same file: what inference alone takes."""
    rates: list[float] = field(default_factory=lambda: [10.0, 1_000.0, 100_000.0])
    """Images a second to plan for."""
    p99_ms: float = 100.0
    """Milliseconds within which 99 of 100 images are to be answered."""
    core_price: float = 0.04
    """Assumption: price of a core with its memory, an hour."""
    gpu_price: float = 1.0
    """Assumption: price of a GPU without its cores, an hour."""
    gpu_rate: float = 3_000.0
    """Assumption: images a second that one GPU infers."""
    gpu_cores: int = 4
    """Cores beside each GPU, which receive and decode; the limit in deploy/kubernetes/gpu.yaml."""
    check: bool = False
    """Measure the server of this machine beside the model; without it an earlier check is kept."""
    model: Path = Path("models/ensemble.onnx")
    """The file that the check serves."""
    seconds: float = 20.0
    """Length of each load of the check."""
    output: Path = Path("benchmarks/results")
    """Folder for capacity.json."""
    page: Path = Path("docs/capacity.md")
    """The page; its figure lies beside it, with the ending `.png`."""


def plan(settings: CapacitySettings) -> dict[str, Any]:
    """Return the plan.

    Raises:
        UserError: a report isn't there, the reports are of different files, or no load can be answered in time.
    """
    cost = _cost(settings)
    cores = int(cost["cores"])
    kinds = {
        "cpu": (Replica(cost["rate"], cores, cost["latency_ms"] / 1e3), cores * settings.core_price),
        "gpu": (_gpu(settings, cost), settings.gpu_cores * settings.core_price + settings.gpu_price),
    }
    return {
        "cost": cost,
        "assumptions": {key: getattr(settings, key) for key in ("core_price", "gpu_price", "gpu_rate", "gpu_cores")},
        "p99_ms": settings.p99_ms,
        "queue_share": QUEUE_SHARE,
        "max_queue": ServerSettings().max_queue,
        "replicas": {
            name: _planned(replica, price, settings.rates, settings.p99_ms / 1e3)
            for name, (replica, price) in kinds.items()
        },
    }


def largest_load(replica: Replica, fits: Callable[[float], bool]) -> float:
    """Return the largest load in images a second that `fits`, to a thousandth; 0 if none does.

    Args:
        replica: the server.
        fits: whether a load does; if one does, smaller ones do.
    """
    steps = range(1, 1000)
    first_wrong = next((step for step in steps if not fits(step / 1000 * replica.rate)), 1000)
    return (first_wrong - 1) / 1000 * replica.rate


def _cost(settings: CapacitySettings) -> dict[str, float]:
    served, alone = read_json(settings.serving), read_json(settings.inference)
    if served["model"]["sha256"] != alone["model"]["sha256"]:
        raise UserError(f"{settings.serving} and {settings.inference} are of different files")
    cores = int(served["machine"]["cores"])
    inference = 1e3 * alone["machine"]["threads"] / max(alone["throughput"].values())
    return {
        "cores": cores,
        "rate": served["throughput"]["http_without_load"],
        "latency_ms": served["latency_ms"]["http"],
        "server_ms": served["server_cpu_ms"],
        "inference_ms": inference,
        # Receiving, decoding and answering, which a GPU doesn't take off the cores.
        "front_ms": served["server_cpu_ms"] - inference,
    }


def _gpu(settings: CapacitySettings, cost: dict[str, float]) -> Replica:
    """Return a replica whose GPU and cores work at the same time; the slower of the two is what images wait for."""
    by_cores = 1e3 * settings.gpu_cores / cost["front_ms"]
    rate = min(settings.gpu_rate, by_cores)
    batch = ServerSettings().max_batch / settings.gpu_rate
    servers = 1 if settings.gpu_rate < by_cores else settings.gpu_cores
    return Replica(rate, servers, cost["front_ms"] / 1e3 + batch)


def _planned(replica: Replica, price: float, rates: list[float], target: float) -> dict[str, Any]:
    most = largest_load(replica, lambda load: replica.quantile(load, SHARE) <= target)
    if not most:
        raise UserError(
            f"--p99_ms {1e3 * target:g} is less than one image takes alone ({1e3 * replica.latency:.1f} ms)"
        )
    queue = ServerSettings().max_queue
    scaled = largest_load(replica, lambda load: replica.images_inside(load) <= QUEUE_SHARE * queue)
    return {
        **asdict(replica),
        "price": price,
        "in_time": _point(replica, most, queue),
        "autoscaler": _point(replica, scaled, queue),
        "loads": [_load(rate, most, scaled, price) for rate in rates],
    }


def _point(replica: Replica, load: float, queue: int) -> dict[str, float]:
    """Return what a replica is like at one load."""
    return {
        "load": load,
        "use": load / replica.rate,
        "p99_ms": 1e3 * replica.quantile(load, SHARE),
        "images_inside": replica.images_inside(load),
        "queue_share": replica.images_inside(load) / queue,
    }


def _load(rate: float, most: float, scaled: float, price: float) -> dict[str, float]:
    count = max(NEVER_ALONE, math.ceil(rate / most))
    return {
        "rate": rate,
        "replicas": count,
        "autoscaler": max(NEVER_ALONE, math.ceil(rate / scaled)),
        "price_month": count * price * _HOURS,
        "price_million": count * price / (rate * 3600) * 1e6,
    }


def main() -> None:
    """Parse the command line, plan, check if asked to, and write the page."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        exit_on_error=False, prog="python benchmarks/capacity.py", description=CapacitySettings.__doc__
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below; flags override it")
    parser.add_class_arguments(CapacitySettings)
    values = parser.parse_args().as_dict()
    values.pop("config")
    settings = CapacitySettings(**values)
    report = plan(settings)
    path = settings.output / "capacity.json"
    if settings.check:
        report["check"] = check_server(settings.model, settings.seconds)
    elif path.exists():
        report["check"] = read_json(path)["check"]
    else:
        report["check"] = None
    figure = settings.page.with_suffix(".png")
    write_json(path, report)
    draw(report, figure)
    text = markdown(report, settings.serving, settings.inference, figure.name)
    write_text(settings.page, text)
    Console().print(Markdown(text))
