"""The command `python benchmarks/serving.py`; what it measures is in `benchmarks.serving_speed` and `serving_soak`."""

import sys
from pathlib import Path

# Python puts this folder first on the path, where this very file would hide the package `serving`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.command import run_benchmark
from benchmarks.serving_speed import main

if __name__ == "__main__":
    run_benchmark(main)
