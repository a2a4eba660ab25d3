"""What the benchmark of training refuses; its figures are those of a machine, and no test's matter."""

from pathlib import Path

import pytest

from benchmarks.training_speed import measure
from tailstack.errors import UserError
from training.settings import FitSettings


def test_no_round_is_refused(tiny_datastore: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rounds is 0"):
        measure(FitSettings(tiny_datastore, tmp_path), 0)
