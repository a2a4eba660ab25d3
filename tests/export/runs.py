"""Runs that are changed before they are exported."""

import json
import shutil
from pathlib import Path

from tailstack.run import ENSEMBLE_FILE


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "run"))


def edit(run: Path, **changes: object) -> None:
    path = run / ENSEMBLE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
