"""The command `python benchmarks/training_peers.py`; what it measures is in `benchmarks.training_contest`."""

import sys
from pathlib import Path

# Run as a script, Python looks beside this file first, where `training.py` would hide the package of that name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.command import run_benchmark
from benchmarks.training_contest import main

if __name__ == "__main__":
    run_benchmark(main)
