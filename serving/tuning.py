"""How an image that has the cores to itself runs fastest in ONNX Runtime: measured once a machine and model, and kept.

Measured are all threads, half as many, threads that don't spin while they wait, and the graph without the layout for
vectors: for a lone image, and for one beside which another one comes in. Only what wins clearly, and loses nowhere,
replaces the default: all threads, spinning. (On two cores EfficientNet-Lites answer one client 1.6 times as fast with
spinning as without.) A shared machine may be half as fast for a second, so each call counts beside the default's of the
same round, and a few slow ones must not decide: the choice is kept.
"""

import hashlib
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tailstack.artifact import LEARNER_PROBABILITIES, PROBABILITIES, Artifact
from tailstack.engine import Engine, open_engine
from tailstack.errors import UserError
from tailstack.files import cache_folder, write_text
from tailstack.images import Pixels
from tailstack.session import SPIN_US, Tuning, cuda_is_offered, runtime_version

logger = logging.getLogger("tailstack")
BUDGET_S = 3.5
"""All of a measurement, but for the call that it ends in."""
ROUNDS = 15
FEWEST_ROUNDS = 3
"""Fewer decide nothing; after so many, what isn't faster in the mean is measured no more."""
GAIN, LOSS = 0.9, 1.05
"""Time beside the default's: at most GAIN in the mean over what is measured, and at most LOSS in each, in three of four
rounds."""
_PICTURE, _TWO = "picture", "picture and another one beside it"


class Setup(BaseModel):
    """What is chosen for an image that has the cores to itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int = Field(ge=1)
    spinning: bool = True
    level: Literal["all", "extended"] = "all"

    @property
    def tuning(self) -> Tuning:
        """The part that a session takes besides its threads."""
        return Tuning(self.spinning, self.level)


Times = Mapping[Setup, Mapping[str, list[float]]]
"""Seconds, by setup and situation."""


def tuned(model: Path, content: bytes, threads: int) -> Setup:
    """Return the setup that wins for a file on the CPU, from the cache where it has been measured before.

    Args:
        model: the file.
        content: of the file, which was checked.
        threads: threads of one inference at most.

    Raises:
        UserError: the file can't be loaded.
    """
    path = cache_path(content, threads)
    kept = _kept(path, threads)
    if kept is not None:
        return kept
    setup = choose(measure(model, content, candidates(threads)))
    logger.info("measured for %s: %s", model.name, setup)
    try:
        write_text(path, setup.model_dump_json() + "\n")
    except UserError as error:
        logger.info("what was measured isn't kept: %s", error)
    return setup


def is_worthwhile(runtime: str, device: str, threads: int) -> bool:
    """Return whether there is something to choose: several threads in ONNX Runtime, and surely on the CPU."""
    if runtime != "onnxruntime" or threads == 1:
        return False
    return device == "cpu" or (device == "auto" and not cuda_is_offered())


def candidates(threads: int) -> list[Setup]:
    """Return what is measured, the default first."""
    default = Setup(threads=threads)
    others = ({"spinning": False}, {"threads": max(1, threads // 2)}, {"level": "extended"})
    return [default, *(default.model_copy(update=changes) for changes in others)]


def choose(times: Times) -> Setup:
    """Return the fastest setup; the default, which comes first, unless another one is surely faster."""
    default = next(iter(times))
    best, least = default, GAIN
    for setup in times:
        ratios = _ratios(times, setup)
        if min(map(len, ratios)) < FEWEST_ROUNDS or max(map(_upper_quartile, ratios)) > LOSS:
            continue
        mean = _mean(ratios)
        if mean <= least:
            best, least = setup, mean
    return best


def measure(model: Path, content: bytes, setups: list[Setup], budget: float = BUDGET_S) -> Times:
    """Time the setups in turns, within `budget` seconds; the first is the default.

    Raises:
        UserError: the file can't be loaded.
    """
    end = time.perf_counter() + budget
    engines = {
        setup: open_engine(model, "onnxruntime", "cpu", setup.threads, content=content, tuning=setup.tuning)
        for setup in setups
    }
    beside = open_engine(model, "onnxruntime", "cpu", 1, content=content)
    height, width = Artifact.from_properties(beside.properties, model).image_size
    noise = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    times: dict[Setup, dict[str, list[float]]] = {setup: {_PICTURE: [], _TWO: []} for setup in setups}
    with ThreadPoolExecutor(1) as other:

        def run_two(engine: Engine) -> None:
            second = other.submit(_run, beside, noise)
            _run(engine, noise)
            second.result()

        situations: dict[str, Callable[[Engine], object]] = {
            _PICTURE: lambda engine: _run(engine, noise),
            _TWO: run_two,
        }
        for number in range(ROUNDS):
            if number == FEWEST_ROUNDS:
                setups = [setups[0], *(setup for setup in setups[1:] if _mean(_ratios(times, setup)) < 1)]
            if len(setups) == 1:
                break
            for name, run in situations.items():
                for setup in setups:
                    if time.perf_counter() > end:
                        return times
                    times[setup][name].append(_seconds(run, engines[setup]))
    return times


def cache_path(content: bytes, threads: int) -> Path:
    """Return where the choice for a file on this machine is kept."""
    cores = sorted(os.sched_getaffinity(0))
    # What was chosen by other rules, or among other settings, is measured anew.
    machine = json.dumps([_processor(), cores, threads, SPIN_US, GAIN, LOSS, runtime_version()])
    key = hashlib.sha256(hashlib.sha256(content).digest() + machine.encode()).hexdigest()[:24]
    return cache_folder() / f"tuning-{key}.json"


def _ratios(times: Times, setup: Setup) -> list[list[float]]:
    """Return, of each situation, the setup's times beside the default's of the same rounds."""
    default = next(iter(times.values()))
    return [
        [own / base for own, base in zip(found, default[name], strict=False)] for name, found in times[setup].items()
    ]


def _mean(ratios: list[list[float]]) -> float:
    return statistics.geometric_mean(statistics.median(ratio) for ratio in ratios)


def _upper_quartile(ratios: list[float]) -> float:
    return statistics.quantiles(ratios, n=4)[2]


def _kept(path: Path, threads: int) -> Setup | None:
    try:
        setup = Setup.model_validate_json(path.read_bytes())
    # A damaged file is measured anew.
    except (OSError, ValueError):
        return None
    return setup if setup.threads <= threads else None


def _run(engine: Engine, images: Pixels) -> None:
    engine.run(images, (PROBABILITIES, LEARNER_PROBABILITIES))


def _seconds(run: Callable[[Engine], object], engine: Engine) -> float:
    # The setup before has left its own data in the caches.
    run(engine)
    start = time.perf_counter()
    run(engine)
    return time.perf_counter() - start


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
