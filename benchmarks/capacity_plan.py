"""How many replicas a load takes, and what they cost: from what was measured, and a queueing model.

    python benchmarks/capacity.py [--check true]

How fast the server is with so many images inside, and what an image costs it, is measured by `--check true`, which also
puts the queue that `benchmarks.queueing` makes of it beside the real server under loads that come at random. What a GPU
does, and prices, are assumptions, and named so.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, set_parsing_settings

from benchmarks.capacity_check import check_server
from benchmarks.capacity_report import draw, markdown
from benchmarks.queueing import Replica
from benchmarks.report import show
from serving.settings import ServerSettings
from tailstack.errors import UserError
from tailstack.files import make_folder, read_json, write_json, write_text

QUEUE_SHARE = 0.1
"""At which deploy/kubernetes adds pods: images in the server, as a share of `TAILSTACK_MAX_QUEUE`."""
SHARE = 0.99
"""Of the images that are to be answered in time."""
NEVER_ALONE = 2
"""Replicas at least, so that one may go."""
_MEASURED = {"inside", "inference_ms", "machine", "loads"}
"""What a plan needs of `check_server`."""
_HOURS = 730
"""Of a month."""
Ratios = list[tuple[float, float]]
"""By load, as a share of the largest."""
AS_MODELLED: Ratios = [(0.0, 1.0)]
_STEPS = 990
"""Thousandths of a replica's rate: nobody plans closer to it."""


@dataclass
class CapacitySettings:
    """Plan replicas for CPU and GPU, and write docs/capacity.md."""

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
    """Measure this machine's server, and check the model beside it; without it, what was measured before is kept."""
    model: Path = Path("models/ensemble.onnx")
    """The file that the check serves."""
    datastore: Path | None = None
    """Folder whose test photos the check sends, in turn: what a cascade costs depends on the photo."""
    seconds: float = 10.0
    """Length of each load of the check that comes at random."""
    output: Path = Path("benchmarks/results")
    """Folder for capacity.json."""
    page: Path = Path("docs/capacity.md")
    """The page; its figure lies beside it, with the ending `.png`."""

    def validate(self) -> None:
        """See that there is something to plan for.

        Raises:
            UserError: a setting is out of its range.
        """
        if not self.rates or not all(0 < rate < math.inf for rate in (*self.rates, self.gpu_rate)):
            raise UserError("--rates has to name images a second, and they and --gpu_rate have to be above 0")
        if self.gpu_cores < 1 or not self.seconds > 0:
            raise UserError("--gpu_cores has to be 1 or more, and --seconds above 0")


def plan(settings: CapacitySettings, check: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan.

    Args:
        settings: of the plan.
        check: what `check_server` measured.

    Raises:
        UserError: no load can be answered in time.
    """
    cost = _cost(check)
    cores = int(cost["cores"])
    server = Replica.measured({row["images"]: row["rate_without_load"] for row in check["inside"]})
    kinds = {
        "cpu": (server, cores * settings.core_price, measured_beside_model(check)),
        "gpu": (_gpu(settings, cost), settings.gpu_cores * settings.core_price + settings.gpu_price, AS_MODELLED),
    }
    return {
        "cost": cost,
        "assumptions": {key: getattr(settings, key) for key in ("core_price", "gpu_price", "gpu_rate", "gpu_cores")},
        "p99_ms": settings.p99_ms,
        "queue_share": QUEUE_SHARE,
        "max_queue": ServerSettings().max_queue,
        "replicas": {
            name: _planned(replica, price, beside, settings.rates, settings.p99_ms / 1e3)
            for name, (replica, price, beside) in kinds.items()
        },
    }


def measured_before(path: Path) -> dict[str, Any]:
    """Return what `check_server` measured, from the capacity.json that it was written to.

    Raises:
        UserError: there is no such file, or it is of another version's form.
    """
    if not path.exists():
        raise UserError(f"{path} isn't there yet: measure the server with --check true")
    report = read_json(path)
    check = report.get("check") if isinstance(report, dict) else None
    if not isinstance(check, dict) or not check.keys() >= _MEASURED:
        raise UserError(f"{path} is not of this version's form: measure the server anew with --check true")
    return check


def measured_beside_model(check: Mapping[str, Any]) -> Ratios:
    """Return how many times the model's the real server's 99% delays were; where they were shorter, 1.

    Of a few rounds, the median of the ratios and the ratio of the medians differ: the larger one promises less.
    """
    return [
        (0.0, 1.0),
        *((row["use"], max(1.0, row["p99_ratio"], row["p99_ms"] / row["p99_ms_model"])) for row in check["loads"]),
    ]


def delay(replica: Replica, load: float, beside: Ratios) -> float:
    """Return the seconds within which 99% of the images are answered at `load` images a second.

    Args:
        replica: the server.
        load: images a second.
        beside: what the model's delays are multiplied by; between two loads on the line between theirs.
    """
    uses, ratios = zip(*beside, strict=True)
    return replica.quantile(load, SHARE) * float(np.interp(load / replica.rate, uses, ratios))


def largest_load(replica: Replica, fits: Callable[[float], bool]) -> float:
    """Return the largest load in images a second that `fits`, to a thousandth of the rate; 0 if none does.

    Args:
        replica: the server.
        fits: whether a load does; if one does, smaller ones do.
    """
    steps = range(1, _STEPS)
    first_wrong = bisect_left(steps, True, key=lambda step: not fits(step / 1000 * replica.rate))
    return first_wrong / 1000 * replica.rate


def _cost(check: Mapping[str, Any]) -> dict[str, float]:
    server, inference = check["inside"][-1]["server_ms"], check["inference_ms"]
    return {
        "cores": int(check["machine"]["threads"]),
        "server_ms": server,
        "inference_ms": inference,
        # Receiving, decoding and answering, which a GPU doesn't take off the cores.
        "front_ms": server - inference,
    }


def _gpu(settings: CapacitySettings, cost: dict[str, float]) -> Replica:
    """Return a replica whose GPU and cores work at the same time; the slower of the two is what images wait for."""
    by_cores = 1e3 * settings.gpu_cores / cost["front_ms"]
    rate = min(settings.gpu_rate, by_cores)
    batch = ServerSettings().max_batch / settings.gpu_rate
    latency = cost["front_ms"] / 1e3 + batch
    return Replica(tuple(min(inside / latency, rate) for inside in range(1, math.ceil(rate * latency) + 1)))


def _planned(replica: Replica, price: float, beside: Ratios, rates: list[float], target: float) -> dict[str, Any]:
    most = largest_load(replica, lambda load: delay(replica, load, beside) <= target)
    if not most:
        raise UserError(
            f"--p99_ms {1e3 * target:g} is less than one image takes alone ({1e3 * replica.latency:.1f} ms)"
        )
    queue = ServerSettings().max_queue
    scaled = largest_load(replica, lambda load: replica.images_inside(load) <= QUEUE_SHARE * queue)
    return {
        "rates": list(replica.rates),
        "price": price,
        "beside_model": beside,
        "in_time": _point(replica, most, beside, queue),
        "autoscaler": _point(replica, scaled, beside, queue),
        "loads": [_load(rate, most, scaled, price) for rate in rates],
    }


def _point(replica: Replica, load: float, beside: Ratios, queue: int) -> dict[str, float]:
    """Return what a replica is like at one load."""
    return {
        "load": load,
        "use": load / replica.rate,
        "p99_ms": 1e3 * delay(replica, load, beside),
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


def run_capacity(settings: CapacitySettings) -> str:
    """Check if asked to, plan, write the report, and return the page.

    What the check measured is written before the plan is made, which may be refused: minutes, to plan from anew.

    Raises:
        UserError: a setting is out of its range, nothing has been measured, or no load can be answered in time.
    """
    settings.validate()
    # Folders that can't be written are found before minutes of measuring.
    path = make_folder(settings.output) / "capacity.json"
    figure = make_folder(settings.page.parent) / settings.page.with_suffix(".png").name
    if settings.check:
        write_json(path, {"check": check_server(settings.model, settings.datastore, settings.seconds)})
    check = measured_before(path)
    report = {**plan(settings, check), "check": check}
    write_json(path, report)
    draw(report, figure)
    text = markdown(report, figure.name)
    write_text(settings.page, text)
    return text


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
    show(run_capacity(CapacitySettings(**values)))
