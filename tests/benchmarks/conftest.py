"""What stands in for a server where nothing is asked of it."""

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from benchmarks.peer_server import Running


@pytest.fixture
def idle() -> Iterator[Running]:
    """A process that waits and may be paused, which the tests' own may not; nothing answers at its port."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            yield Running(1, psutil.Process(child.pid))
        finally:
            child.kill()
