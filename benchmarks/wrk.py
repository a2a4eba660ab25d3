"""A closed loop by wrk, a load generator in C: so many requests under way at a time, each followed by the next.

Debian has it: `apt-get install wrk`. It doesn't correct for coordinated omission, so a rate that is kept whether or not
the server follows is the work of `benchmarks.http_load`.
"""

import json
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.http_load import Body
from tailstack.errors import UserError

SCRIPT = Path(__file__).with_name("wrk.lua")
KEY = "TAILSTACK_API_KEY"
"""The variable with the key that clients here send."""


@dataclass(frozen=True)
class Closed:
    """What wrk saw."""

    images_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    failures: int
    """Answers other than 2xx, and connections that broke or timed out."""
    seconds: float
    load_cores: float
    """Cores that wrk itself took."""


def check_wrk() -> None:
    """See that wrk is there.

    Raises:
        UserError: it isn't installed.
    """
    if shutil.which("wrk") is None:
        raise UserError("the load is made by wrk, which isn't installed: apt-get install wrk")


def run_wrk(url: str, bodies: Sequence[Body], concurrency: int, seconds: float, *, key: str = "") -> Closed:
    """Post bodies in turn, again and again.

    Args:
        url: where they are posted.
        bodies: what is posted, of one content type.
        concurrency: connections, each with one request under way.
        seconds: how long; wrk takes whole ones.
        key: API key; empty sends none.

    Raises:
        UserError: wrk isn't installed, or fails.
    """
    check_wrk()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number:04}" for number in range(len(bodies))]
        for file, body in zip(files, bodies, strict=True):
            file.write_bytes(body.content)
        command = ["wrk", "--threads", "1", "--connections", str(concurrency)]
        command += ["--duration", f"{max(1, round(seconds))}s", "--timeout", "30s", "--script", str(SCRIPT)]
        command += [url, "--", bodies[0].content_type, *map(str, files)]
        before = _children_seconds()
        # A key on the command line would be seen by everyone who lists processes.
        environment = {**os.environ, KEY: key}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        taken = _children_seconds() - before
    if done.returncode:
        raise UserError(f"wrk failed with status {done.returncode}: {(done.stderr or done.stdout).strip()}")
    # The script prints its own line last.
    report = json.loads(done.stdout.splitlines()[-1])
    return Closed(
        images_per_second=(report["requests"] - report["bad_status"]) / report["seconds"],
        p50_ms=report["p50_ms"],
        p90_ms=report["p90_ms"],
        p99_ms=report["p99_ms"],
        failures=report["bad_status"] + report["broken"],
        seconds=report["seconds"],
        load_cores=taken / report["seconds"],
    )


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
