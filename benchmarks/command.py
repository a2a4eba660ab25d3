"""How the commands of this folder run: they start servers, which must not outlive them."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

from tailstack.errors import run_command

_ENDING = (signal.SIGTERM, signal.SIGHUP)


def run_benchmark(command: Callable[[], None]) -> None:
    """Run a command line as `tailstack.errors.run_command` does, and end what it has started however it ends.

    By itself, Python ends on a SIGTERM or a SIGHUP as it stands: servers would run on, and those that wait for their
    turn would lie stopped for good.
    """
    for number in _ENDING:
        # Under nohup the terminal's end is to be survived.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)
    run_command(command, resumes=False)


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
