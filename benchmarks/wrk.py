"""A closed loop by wrk, a load generator in C: so many requests under way at a time, each followed by the next.

Debian has it: `apt-get install wrk`. Latencies are those of the answers that came, of any status; what wrk adds to them
("corrects for coordinated omission") is taken out. What is under way when the time is over is dropped, however long it
has waited. So a limit for delays, and a rate that is kept whether or not the server follows, are the work of
`benchmarks.http_load`.
"""

import json
import math
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.http_load import Body, in_folder
from tailstack.errors import UserError

SCRIPT = Path(__file__).with_name("wrk.lua")
KEY = "TAILSTACK_API_KEY"
"""The variable with the key that clients here send."""
ANSWERS = 8
"""That each connection of a turn gets, about: a server that is slow or has many under way takes more than a second."""
BATCHES, LARGEST_BATCH = 16, 16
"""That a turn has at least: of the last one, half is lost on average when the turn ends."""
LONGEST_TURN_S = 60.0
"""However slow a server is."""


@dataclass(frozen=True)
class Closed:
    """What a load saw that kept so many requests under way."""

    images_per_second: float
    milliseconds: npt.NDArray[np.float64]
    """Of each answer."""
    failures: int
    """Answers other than 2xx, and connections that broke or timed out."""
    seconds: float
    load_cores: float
    """Cores that the load itself took."""

    @property
    def ended(self) -> float:
        """Requests that came to an end, failed ones too."""
        return self.images_per_second * self.seconds + self.failures

    @property
    def pace(self) -> float:
        """Requests a second that came to an end; at least one in all that time."""
        return max(1.0, self.ended) / self.seconds


def check_wrk() -> None:
    """See that wrk is there.

    Raises:
        UserError: it isn't installed.
    """
    if shutil.which("wrk") is None:
        raise UserError("the load is made by wrk, which isn't installed: apt-get install wrk")


def turn_seconds(least: float, concurrency: int, rate: float) -> float:
    """Return how long a turn has to be for a server that answers `rate` requests a second: `least`, or longer."""
    answers = max(ANSWERS * concurrency, BATCHES * min(concurrency, LARGEST_BATCH))
    return max(least, min(LONGEST_TURN_S, answers / rate))


def run_wrk(url: str, bodies: Sequence[Body], concurrency: int, seconds: float, *, key: str = "") -> Closed:
    """Post bodies in turn, again and again.

    Args:
        url: where they are posted.
        bodies: what is posted, of one content type.
        concurrency: connections, each with one request under way.
        seconds: how long, at least; wrk takes whole ones.
        key: API key; empty sends none.

    Raises:
        UserError: wrk isn't installed, or fails, as it does where nobody listens.
    """
    check_wrk()
    whole = max(1, math.ceil(seconds))
    with in_folder([body.content for body in bodies]) as folder:
        command = ["wrk", "--threads", "1", "--connections", str(concurrency)]
        # No answer is slower than the turn is long: each one's time counts.
        command += ["--duration", f"{whole}s", "--timeout", f"{whole + 1}s", "--script", str(SCRIPT)]
        command += [url, "--", bodies[0].content_type, *map(str, sorted(Path(folder).iterdir()))]
        # A key on the command line would be seen by everyone who lists processes.
        environment = {**os.environ, KEY: key}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"wrk failed with status {done.returncode}: {(done.stderr or done.stdout).strip()}")
    # The script prints its own line last.
    report = json.loads(done.stdout.splitlines()[-1])
    seconds = report["duration_us"] / 1e6
    interval = report["duration_us"] // max(1, report["requests"] // concurrency)
    measured = as_measured(dict(report["latencies_us"]), interval)
    return Closed(
        images_per_second=(report["requests"] - report["bad_status"]) / seconds,
        milliseconds=np.repeat(list(measured), list(measured.values())) / 1e3,
        failures=report["bad_status"] + report["broken"],
        seconds=seconds,
        load_cores=report["cpu_seconds"] / seconds,
    )


def as_measured(latencies: Mapping[int, int], interval: int) -> dict[int, int]:
    """Take out the answers that wrk adds to those that it measured.

    It takes each connection for one that should have asked once every `interval`. So for an answer that took t, it
    counts others that took t - interval, t - 2 * interval and so on, as long as that is above `interval`
    (`stats_correct` in its stats.c). There, all that counts at t + interval counts at t once more.

    Args:
        latencies: answers by the microseconds that they took, as wrk reports them.
        interval: mean microseconds between two answers over one connection.
    """
    return {
        taken: count - (latencies.get(taken + interval, 0) if taken > interval else 0)
        for taken, count in latencies.items()
    }
