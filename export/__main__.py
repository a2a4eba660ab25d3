"""The command line: `python -m export RUN --output FILE`."""

from pathlib import Path

from jsonargparse import ArgumentParser

from export import DEFAULT_OUTPUT
from tailstack.errors import run_command


def main() -> None:
    """Parse the command line and export."""
    parser = ArgumentParser(
        exit_on_error=False,
        prog="python -m export",
        description="Fuse a run's learners into one ONNX file, checked before it appears.",
    )
    parser.add_argument("run", type=Path, help="folder that `python -m training fit` wrote")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="the file to write")
    arguments = parser.parse_args()
    # Torch takes seconds to import: a mistake in the flags is answered before.
    from export.export import export  # noqa: PLC0415

    export(arguments.run, arguments.output)


if __name__ == "__main__":
    run_command(main)
