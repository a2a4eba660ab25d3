"""The command `compare`: techniques x datastores x seeds, a cell each, the ones that are done not repeated."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from tailstack import datastore as datastores
from tailstack.datastore import Datastore
from tailstack.errors import UserError, listing
from tailstack.files import make_folder
from training.cells import Cell, cell_name, cell_path, load_cell
from training.fit import changed_settings, check, fit
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
        UserError: a setting or a datastore can't be used, a cell is there already that was made with others, or the
            training of a learner diverged.
        KeyboardInterrupt: the user stopped it; the same settings go on where it was.
    """
    console = Console()
    if base.processes > 1:
        raise UserError("--devices and --num_nodes are of fit: a comparison trains its learners in this process")
    make_folder(settings.output)
    every = [name for name, technique in TECHNIQUES.items() if not technique.taught]
    techniques = every if settings.techniques == ["all"] else settings.techniques
    todo = list(_cells(settings, techniques, base))
    _check(settings, todo)
    for number, (path, chosen) in enumerate(todo, 1):
        if path.exists():
            continue
        console.rule(f"{number}/{len(todo)}: {path.stem}")
        fit(chosen, share=settings.runs_folder)
        Cell.of_run(chosen.output).save(settings.output)
    page = report(settings.output)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)
    return page


def _check(settings: CompareSettings, todo: Sequence[tuple[Path, FitSettings]]) -> None:
    """Refuse what can't be trained before any training, and cells that are done but aren't what is asked for."""
    stores = {path: datastores.load(path) for path in settings.datastores}
    others = []
    for path, chosen in todo:
        store = stores[chosen.datastore]
        if not path.exists():
            check(chosen, store)
        elif differing := _differences(load_cell(path), chosen, store):
            others.append(f"{path.stem}: {'; '.join(differing)}")
    if others:
        raise UserError(
            f"{settings.output} has {len(others)} cell(s) that were made otherwise: leave them out, or choose another "
            f"--output\n{listing(others)}"
        )


def _differences(cell: Cell, chosen: FitSettings, store: Datastore) -> list[str]:
    """Say what would be other in a cell if it were made now."""
    # What a cell of an earlier version doesn't name was as it is by default.
    plain = completed(FitSettings(chosen.datastore, chosen.output, technique=chosen.technique))
    differing = changed_settings({**plain.to_dict(), **cell.run.config}, completed(chosen).to_dict())
    if cell.run.datastore != {"path": cell.run.datastore["path"], **store.digests()}:
        differing.append(f"{store.path} has other images or labels now")
    return differing


def _cells(settings: CompareSettings, techniques: list[str], base: FitSettings) -> Iterator[tuple[Path, FitSettings]]:
    """Yield each cell's file and the settings of its run, seed by seed, so that a first whole table is there early."""
    for seed in settings.seeds:
        for datastore in settings.datastores:
            for technique in techniques:
                name = cell_name(datastore.name, technique, seed)
                run = settings.runs_folder / name
                chosen = dataclasses.replace(base, datastore=datastore, output=run, technique=technique, seed=seed)
                yield cell_path(settings.output, name), chosen
