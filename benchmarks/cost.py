"""The command `python benchmarks/cost.py`; what it measures is in `benchmarks.cost_variants`."""

import sys
from pathlib import Path

# Run as a script, Python looks beside this file first, where `training.py` would hide the package of that name.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.command import run_benchmark
from benchmarks.cost_variants import main

if __name__ == "__main__":
    run_benchmark(main)
