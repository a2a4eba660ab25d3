"""The command `report`: the cells of a comparison -> a page, its tables and figures."""

from pathlib import Path

from tailstack.files import make_folder, write_text
from training.cells import FOLDER, load_cells
from training.report_data import choose, gather
from training.report_figures import group_figures
from training.report_overview import overview_figures
from training.report_page import conditions, every_figure, illustrated, opening, tables
from training.report_sweep import sweep_section
from training.report_tables import load_reference, write_table

PAGE = "README.md"
TABLE = "table.csv"
FIGURES = "figures"
SWEEP = "sweep.csv"


def report(folder: Path) -> Path:
    """Write README.md, table.csv and figures/ into the folder of a comparison, or of a sweep.

    The sweeps that lie in folders inside it get a section each.

    Returns:
        The page.

    Raises:
        UserError: there are no results, one is damaged, or the folder can't be written to.
    """
    parts = [sweep_section(load_cells(folder), folder)] if (folder / SWEEP).exists() else _comparison(folder)
    for inner in sorted(path.parent for path in folder.glob(f"*/{SWEEP}")):
        parts.append(_inner_sweep(inner, folder))
    write_text(folder / PAGE, "\n\n".join([f"# {folder.resolve().name}", *parts]) + "\n")
    return folder / PAGE


def _inner_sweep(inner: Path, folder: Path) -> str:
    if not any((inner / FOLDER).glob("*.json")):
        return f"## Sweep: {inner.name}\n\nNone of its trials is finished."
    return sweep_section(load_cells(inner), folder, inner.name)


def _comparison(folder: Path) -> list[str]:
    cells = load_cells(folder)
    figures = make_folder(folder / FIGURES)
    groups = gather(cells)
    choice = choose(groups)
    chosen = choice.technique if choice else None
    write_table(folder / TABLE, groups)
    parts = [
        *opening(groups, choice),
        *tables(groups, load_reference(groups)),
        *illustrated("Accuracy by technique and size", overview_figures(groups, chosen, figures)),
        *every_figure(groups),
    ]
    for group in groups:
        parts += illustrated(f"Ratio {group.label}", group_figures(group, chosen, figures))
    return [*parts, *conditions(cells, groups)]
