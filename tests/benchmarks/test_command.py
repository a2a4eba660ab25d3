"""How the benchmarks' commands end: what they have started ends with them."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = """
import signal, sys, time
from benchmarks.command import run_benchmark

def measure() -> None:
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("servers ended", flush=True)

signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1]))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background is born deaf to it
run_benchmark(measure)
"""


@pytest.mark.parametrize(
    ("sent", "code", "says"),
    [(["SIGTERM"], 143, ""), (["SIGHUP"], 129, ""), (["SIGINT"], 130, "stopped.\n"), (["SIGHUP", "SIGTERM"], 143, "")],
)
def test_a_signal_ends_the_servers_too(sent: list[str], code: int, says: str) -> None:
    # Two: as under nohup, which the terminal's end doesn't end.
    hangup = "SIG_DFL" if len(sent) == 1 else "SIG_IGN"
    command = [sys.executable, "-c", COMMAND, hangup]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for name in sent:
            process.send_signal(getattr(signal, name))
        output, errors = process.communicate()
    assert (process.returncode, output, errors) == (code, "servers ended\n", says)
