"""The command `python benchmarks/scoring.py`; what it measures is in `benchmarks.scoring_speed`."""

import sys
from pathlib import Path

# Run as a script, Python looks beside this file first, where `serving.py` would hide the package of that name.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.scoring_speed import main
from tailstack.errors import run_command

if __name__ == "__main__":
    run_command(main)
