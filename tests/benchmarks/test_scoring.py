"""The scoring benchmark on a small model: its figures belong together."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def test_the_reports_figures_belong_together(tiny_datastore: Path, tiny_model: Path, tmp_path: Path) -> None:
    line = [sys.executable, "benchmarks/scoring.py", f"--source={tiny_datastore / 'images'}", f"--model={tiny_model}"]
    line += ["--seconds=0.2", "--rounds=1", f"--output={tmp_path}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "scoring.json").read_text())
    assert (report["images"], report["errors"]) == (274, 0)
    assert report["ratio"] == pytest.approx(report["rounds"]["score"][0] / np.mean(report["rounds"]["bare"]))
    assert report["ratio_with_start"] < report["ratio"]
    assert f"| {report['ratio']:.3f} |" in (tmp_path / "scoring.md").read_text()
