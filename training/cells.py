"""The cells of a comparison: one small JSON file for each datastore, technique and seed.

results/NAME/cells/<datastore>--<technique>--seed<k>.json
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tailstack.errors import UserError
from tailstack.files import read_json, write_json
from tailstack.run import RunRecord, learner_folder
from training.learner import read_log

FOLDER = "cells"


class Cell(BaseModel):
    """One finished run of a comparison, with what a report shows of it."""

    model_config = ConfigDict(extra="forbid")

    datastore: str
    """Name of its folder."""
    ratio: float
    """Smallest class / largest class of train.json."""
    technique: str
    seed: int
    curves: dict[str, list[dict[str, float]]]
    """The rows of each learner's metrics.csv, by the learner's name."""
    run: RunRecord

    @property
    def name(self) -> str:
        """What tells it from the other cells."""
        return cell_name(self.datastore, self.technique, self.seed)

    @classmethod
    def of_run(cls, run: Path) -> "Cell":
        """Collect what a finished run holds.

        Raises:
            UserError: there is no finished run.
        """
        record = RunRecord.load(run)
        return cls(
            datastore=Path(record.datastore["path"]).name,
            ratio=round(min(record.class_counts) / max(record.class_counts), 4),
            technique=record.technique,
            seed=record.config["seed"],
            curves={learner.name: read_log(learner_folder(run, learner.name)) for learner in record.learners},
            run=record,
        )

    def save(self, folder: Path) -> None:
        """Write the cell into its file under `folder`, the comparison's, whole or not at all."""
        path = cell_path(folder, self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.model_dump(mode="json"), indent=None)


def cell_name(datastore: str, technique: str, seed: int) -> str:
    """Return the name of a cell."""
    return f"{datastore}--{technique}--seed{seed}"


def cell_path(folder: Path, name: str) -> Path:
    """Return the file of a cell in the comparison at `folder`."""
    return folder / FOLDER / f"{name}.json"


def load_cell(path: Path) -> Cell:
    """Read the cell in a file.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        return Cell.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path} is not of this version's form: {error}") from error


def load_cells(folder: Path) -> list[Cell]:
    """Read every cell of the comparison at `folder`, ordered by falling ratio, then by technique's name and seed.

    Raises:
        UserError: there are none, or one is damaged.
    """
    paths = sorted((folder / FOLDER).glob("*.json"))
    if not paths:
        raise UserError(f"{folder} has no results; make some with: python -m training compare … --output {folder}")
    return sorted(map(load_cell, paths), key=lambda cell: (-cell.ratio, cell.datastore, cell.technique, cell.seed))
