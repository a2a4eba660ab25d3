"""The command line: `python -m export RUN --output FILE`, and `python -m export verify FILE`."""

import sys
from pathlib import Path
from typing import get_args

from jsonargparse import ArgumentParser

from export import DEFAULT_OUTPUT, MAX_ACCURACY_DROP
from tailstack.artifact import Precision
from tailstack.errors import run_command


def main() -> None:
    """Parse the command line, and export or verify."""
    if sys.argv[1:2] == ["verify"]:
        _verify(sys.argv[2:])
    else:
        _export()


def _verify(words: list[str]) -> None:
    parser = ArgumentParser(
        exit_on_error=False,
        prog="python -m export verify",
        description="Repeat the release gate's checks on a file: is it what it says of itself?",
    )
    parser.add_argument("file", type=Path, help="file that `python -m export` wrote")
    parser.add_argument(
        "--datastore",
        type=Path | None,
        help="folder of its data set; the default is the one that it names",
    )
    arguments = parser.parse_args(words)
    from export.verify import verify

    verify(arguments.file, arguments.datastore)


def _export() -> None:
    parser = ArgumentParser(
        exit_on_error=False,
        prog="python -m export",
        description="Fuse a run's learners into one ONNX file, checked before it appears. "
        "`python -m export verify FILE` repeats the checks on a file.",
    )
    parser.add_argument("run", type=Path, help="folder that `python -m training fit` wrote")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="the file to write")
    parser.add_argument(
        "--student",
        metavar="ARCHITECTURE",
        help="export RUN-student, one learner that the run's ensemble teaches, or with --cascade RUN-taught, the "
        "ensemble with that learner in the place of its own of that network; trained first where it isn't there",
    )
    parser.add_argument(
        "--cascade",
        action="store_true",
        help="later learners see only the images that the ones before are unsure of",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="int8: weights and activations in 8-bit integers, for CPUs; sensitive parts stay in float; fp16: for GPUs",
    )
    parser.add_argument(
        "--max_accuracy_drop",
        type=float,
        default=MAX_ACCURACY_DROP,
        help="points of accuracy on validation that a cascade, int8 or fp16 may cost",
    )
    parser.add_argument(
        "--sign",
        metavar="KEY",
        type=Path | None,
        help="private key of an elliptic curve (PEM) to sign the file with, for servers with TAILSTACK_PUBLIC_KEY",
    )
    arguments = parser.parse_args()
    # Torch takes seconds to import: a mistake in the flags is answered before.
    from export.cheaper import Wanted
    from export.export import export
    from export.student import student_of

    wanted = Wanted(arguments.cascade, arguments.precision, arguments.max_accuracy_drop)
    run = arguments.run
    if arguments.student:
        run = student_of(run, arguments.student, keep_others=arguments.cascade)
    export(run, arguments.output, wanted, arguments.sign)


if __name__ == "__main__":
    run_command(main)
