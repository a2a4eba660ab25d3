"""The command `python benchmarks/training.py`; what it measures is in `benchmarks.training_speed`."""

import sys
from pathlib import Path

# Python puts this folder first on the path, where this very file would hide the package `training`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.training_speed import main
from tailstack.errors import run_command

if __name__ == "__main__":
    run_command(main)
