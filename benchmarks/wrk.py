"""A closed loop by wrk, a load generator in C: so many requests under way at a time, each followed by the next.

Debian has it: `apt-get install wrk`. It doesn't correct for coordinated omission, so a rate that is kept whether or not
the server follows is the work of `benchmarks.http_load`.
"""

import json
import resource
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.http_load import Body
from tailstack.errors import UserError

SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True)
class Closed:
    """What wrk saw."""

    images_per_second: float
    p50_ms: float
    p99_ms: float
    failures: int
    """Answers other than 2xx, and connections that broke or timed out."""
    seconds: float
    load_cores: float
    """Cores that wrk itself took."""


def run_wrk(port: int, path: str, body: Body, concurrency: int, seconds: float) -> Closed:
    """Post one body again and again.

    Args:
        port: of the server on this machine.
        path: where it is posted.
        body: what is posted.
        concurrency: connections, each with one request under way.
        seconds: how long; wrk takes whole ones.

    Raises:
        UserError: wrk isn't installed, or fails.
    """
    if shutil.which("wrk") is None:
        raise UserError("the load is made by wrk, which isn't installed: apt-get install wrk")
    with tempfile.NamedTemporaryFile() as file:
        file.write(body.content)
        file.flush()
        command = [
            "wrk",
            "--threads",
            "1",
            "--connections",
            str(concurrency),
            "--duration",
            f"{max(1, round(seconds))}s",
        ]
        command += ["--timeout", "30s", "--script", str(SCRIPT), f"http://127.0.0.1:{port}{path}"]
        before = _children_seconds()
        done = subprocess.run(
            [*command, "--", body.content_type, file.name], capture_output=True, text=True, check=False
        )
        taken = _children_seconds() - before
    if done.returncode:
        raise UserError(f"wrk failed with status {done.returncode}: {(done.stderr or done.stdout).strip()}")
    # The script prints its own line last.
    report = json.loads(done.stdout.splitlines()[-1])
    return Closed(
        images_per_second=(report["requests"] - report["bad_status"]) / report["seconds"],
        p50_ms=report["p50_ms"],
        p99_ms=report["p99_ms"],
        failures=report["bad_status"] + report["broken"],
        seconds=report["seconds"],
        load_cores=taken / report["seconds"],
    )


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
