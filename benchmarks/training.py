"""The command `python benchmarks/training.py`; what it measures is in `benchmarks.training_speed`."""

import sys
from pathlib import Path

# Python puts this folder first on the path, where this very file would hide the package `training`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.command import run_benchmark
from benchmarks.training_speed import main

if __name__ == "__main__":
    run_benchmark(main)
