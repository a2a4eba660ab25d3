"""The part of a report that shows a sweep: its best trial, accuracy against parameters, batch size by learning rate."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tailstack.figures import BLUE, INK, Row, drawing, percent, write_csv
from tailstack.markdown import table
from training.cells import Cell
from training.report_figures import Shown
from training.report_overview import scatter_named
from training.report_tables import bold, number
from training.settings import SHARED_SETTINGS

GRID = ("batch_size", "lr")


def sweep_section(cells: Sequence[Cell], folder: Path, name: str = "sweep") -> str:
    """Write the figures of a sweep into `folder`/figures, and return its part of the page, as Markdown.

    Args:
        cells: finished trials, one or more; what `swept_settings` returns of them was swept.
        folder: of the page.
        name: heading, and the beginning of the figures' names.
    """
    swept = swept_settings(cells)
    ranked = sorted(cells, key=lambda cell: -_validation(cell))
    figures = folder / "figures"
    shown = []
    if "architectures" in swept:
        shown.append(_parameters(ranked, figures / f"{name}-parameters.png"))
    if set(GRID) <= set(swept):
        shown.append(_heat_map(ranked, figures / f"{name}-batch-size-lr.png"))
    first = ", ".join(f"{setting} {_shown(ranked[0], setting)}" for setting in swept)
    lines = [
        f"## Sweep: {name}",
        f"Best of {len(cells)} finished trials on validation: {first or 'the only one'}, with "
        f"{number(_validation(ranked[0]))} top-1 there and {number(ranked[0].run.results['top1'])} on the test split.",
        _what_was_alike(cells),
        *(f"**{item.title}.** {item.caption}\n\n![{item.title}](figures/{item.name}.png)" for item in shown),
        _table(ranked, swept),
    ]
    return "\n\n".join(lines)


def _what_was_alike(cells: Sequence[Cell]) -> str:
    """Say on what the trials were trained, and for how long, so that their accuracies aren't taken for more."""
    config, swept = cells[0].run.config, set(swept_settings(cells))
    facts = (
        ({"pretrained"}, "from ImageNet weights" if config["pretrained"] else "from scratch"),
        ({"epochs", "resolution"}, f"{config['epochs']} epochs at {config['resolution']} pixels"),
        ({"seed"}, f"seed {cells[0].seed}"),
    )
    alike = [text for settings, text in facts if not settings & swept]
    return f"{', '.join([f'Trials on `{cells[0].datastore}`', *alike])}."


def swept_settings(cells: Sequence[Cell]) -> list[str]:
    """Return the settings, but for `SHARED_SETTINGS`, in which the cells differ, in the configuration's order."""
    values: dict[str, set[str]] = {}
    for cell in cells:
        for setting, value in cell.run.config.items():
            values.setdefault(setting, set()).add(json.dumps(value, sort_keys=True))
    return [setting for setting, found in values.items() if len(found) > 1 and setting not in SHARED_SETTINGS]


def _validation(cell: Cell) -> float:
    return float(cell.run.validation.get("top1") or 0.0)


def _shown(cell: Cell, setting: str) -> str:
    value: Any = cell.run.config.get(setting)
    if setting == "architectures":
        return ", ".join(dict.fromkeys(learner.architecture for learner in cell.run.learners))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(ranked: Sequence[Cell], swept: Sequence[str]) -> str:
    rows = []
    for k, cell in enumerate(ranked):
        parameters = sum(learner.parameters for learner in cell.run.learners)
        figures = [number(_validation(cell)), number(cell.run.results["top1"]), f"{parameters / 1e6:.1f} M"]
        rows.append([*(_shown(cell, setting) for setting in swept), bold(figures[0], k == 0), *figures[1:]])
    header = [*swept, "validation top-1", "test top-1", "parameters"]
    return table(header, rows, "l" * len(swept))


def _parameters(ranked: Sequence[Cell], path: Path) -> Shown:
    """Plot the best trial (on validation) of each architecture."""
    best: dict[str, Cell] = {}
    for cell in ranked:
        best.setdefault(_shown(cell, "architectures"), cell)
    points = [
        (sum(learner.parameters for learner in cell.run.learners) / 1e6, float(cell.run.results["top1"]), name)
        for name, cell in best.items()
    ]
    top1s = [top1 for _, top1, _ in points]
    with drawing(path, 4.4) as (axis,):
        scatter_named(axis, points, lambda _name: BLUE, (min(top1s), max(top1s)))
        axis.set(xlabel="parameters, millions", ylabel="test top-1")
        percent(axis)
    rows: list[Row] = [[name, millions, _validation(best[name]), top1] for millions, top1, name in points]
    write_csv(path.with_suffix(".csv"), ("architecture", "parameters_millions", "validation_top1", "test_top1"), rows)
    return Shown(path.stem, "Accuracy against parameters", "Each architecture in its best trial on validation.")


def _heat_map(ranked: Sequence[Cell], path: Path) -> Shown:
    """Show validation top-1 by batch size and learning rate, the best over what else was swept."""
    batches, rates = (sorted({cell.run.config[setting] for cell in ranked}) for setting in GRID)
    grid = np.full((len(batches), len(rates)), np.nan)
    for cell in reversed(ranked):
        place = batches.index(cell.run.config["batch_size"]), rates.index(cell.run.config["lr"])
        grid[place] = _validation(cell)
    with drawing(path, 1.6 + 0.6 * len(batches)) as (axis,):
        axis.imshow(np.ma.masked_invalid(grid), cmap="Blues", aspect="auto")
        middle = np.nanmin(grid) + 0.6 * (np.nanmax(grid) - np.nanmin(grid))
        for (i, j), value in np.ndenumerate(grid):
            text = "-" if np.isnan(value) else f"{value:.3f}"
            axis.text(j, i, text, ha="center", va="center", color="white" if value > middle else INK)
        axis.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axis.set_yticks(range(len(batches)), [str(batch) for batch in batches])
        axis.set(xlabel="learning rate", ylabel="batch size")
        axis.tick_params(length=0)
        axis.grid(visible=False)
    rows: list[Row] = [
        [batch, rate, None if np.isnan(grid[i, j]) else float(grid[i, j])]
        for i, batch in enumerate(batches)
        for j, rate in enumerate(map(str, rates))
    ]
    write_csv(path.with_suffix(".csv"), (*GRID, "validation_top1"), rows)
    caption = "Top-1 on validation; a dash stands where no trial was finished."
    return Shown(path.stem, "Batch size and learning rate", caption)
