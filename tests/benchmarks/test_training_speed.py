"""The benchmark of training: that it measures, and what it refuses. How fast is a machine's, and no test's matter."""

from pathlib import Path

import pytest

from benchmarks import training_speed
from benchmarks.training_speed import measure
from tailstack.errors import UserError
from training.settings import FitSettings


def test_every_figure_is_measured(tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_speed, "STEPS", 2)
    settings = FitSettings(
        tiny_datastore, tmp_path, architectures=["lcnet_035"], resolution=32, batch_size=8, num_workers=0, epochs=2
    )
    figures = measure(settings, rounds=1)
    assert set(figures) == {"torch", "bare", "fit", "fit_to_bare", "bare_to_torch", "peak_memory_gib"}
    assert min(figures.values()) > 0


def test_no_round_is_refused(tiny_datastore: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rounds is 0"):
        measure(FitSettings(tiny_datastore, tmp_path), 0)
