"""The command `python benchmarks/compare.py`; what it measures is in `benchmarks.comparison`."""

import sys
from pathlib import Path

# Run as a script, Python looks beside this file first, where `training.py` would hide the package of that name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.command import run_benchmark
from benchmarks.comparison import main

if __name__ == "__main__":
    run_benchmark(main)
