"""Errors that a user can mend, and how a command reports them."""

import argparse
import sys
from collections.abc import Callable, Sequence


class UserError(Exception):
    """A mistake that the user can mend: shown as one clear message, without a traceback."""


MAX_LISTED = 20


def listing(problems: Sequence[str]) -> str:
    """Join `problems` into an indented list, one a line, that stays readable however many there are."""
    shown = [f"  {problem}" for problem in problems[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        shown.append(f"  … and {len(problems) - MAX_LISTED} more")
    return "\n".join(shown)


def run_command(command: Callable[[], None], *, resumes: bool = True) -> None:
    """Run a command line, and end the process with one message on a mistake or a Ctrl-C.

    The exit code is 1 on a `UserError`, 2 on flags that the command doesn't have or can't read (of a parser that raises
    them: `exit_on_error=False`), and 130 on Ctrl-C.

    Args:
        command: what is run.
        resumes: whether the same command goes on where it was stopped, as it is then told.
    """
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except argparse.ArgumentError as error:
        print(f"error: {error.message}\nEvery flag is explained by --help.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        hint = " Run the same command again to go on where it stopped." * resumes
        print(f"stopped.{hint}", file=sys.stderr)
        sys.exit(130)
