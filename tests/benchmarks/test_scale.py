"""`benchmarks/scale.py` measures a datastore of the size that it was asked for, and says so."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_measures_what_it_was_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/scale.py", "--images", "1500", "--classes", "30", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    steps = json.loads((tmp_path / "scale.json").read_text())["steps"]
    assert (steps["open"]["images"], steps["open"]["classes"]) == (1500, 30)
    assert steps["workers"]["images"] == 1500 - 3 * 30
    assert steps["workers"]["workers"] == 2
    assert all(0.01 < step["peak_gb"] < 10 for step in steps.values())
    assert "1,500 images, 30 classes" in (tmp_path / "scale.md").read_text()
