"""The command `compare`: techniques x datastores x seeds, a cell each, the ones that are done not repeated."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from tailstack.errors import UserError
from tailstack.files import make_folder
from training.cells import Cell, cell_name, cell_path
from training.fit import fit
from training.report import report
from training.settings import CompareSettings, FitSettings
from training.techniques import TECHNIQUES, completed


def compare(settings: CompareSettings, base: FitSettings) -> Path:
    """Train what is missing, and write the report.

    Args:
        settings: which cells.
        base: every other setting, the same for all cells.

    Returns:
        The report's page.

    Raises:
        UserError: a setting or a datastore can't be used.
    """
    console = Console()
    if base.processes > 1:
        raise UserError("--devices and --num_nodes are of fit: a comparison trains its learners in this process")
    make_folder(settings.output)
    every = [name for name, technique in TECHNIQUES.items() if not technique.taught]
    techniques = every if settings.techniques == ["all"] else settings.techniques
    todo = list(_cells(settings, techniques, base))
    for _, chosen in todo:
        completed(chosen)  # a technique that can't be trained is found before any training
    for number, (path, chosen) in enumerate(todo, 1):
        if path.exists():
            continue
        console.rule(f"{number}/{len(todo)}: {path.stem}")
        fit(chosen, share=settings.runs_folder)
        Cell.of_run(chosen.output).save(settings.output)
    page = report(settings.output)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)
    return page


def _cells(settings: CompareSettings, techniques: list[str], base: FitSettings) -> Iterator[tuple[Path, FitSettings]]:
    """Yield each cell's file and the settings of its run, seed by seed, so that a first whole table is there early."""
    for seed in settings.seeds:
        for datastore in settings.datastores:
            for technique in techniques:
                name = cell_name(datastore.name, technique, seed)
                run = settings.runs_folder / name
                chosen = dataclasses.replace(base, datastore=datastore, output=run, technique=technique, seed=seed)
                yield cell_path(settings.output, name), chosen
