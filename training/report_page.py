"""The page of a report: what to do first, then the tables, then the figures of each data set."""

from collections.abc import Sequence

import numpy as np

from tailstack.markdown import table
from tailstack.metrics import FEW_UNDER, MANY_OVER
from training.cells import Cell
from training.report_command import code, fit_command, flag_value
from training.report_data import BASELINE, Choice, Group, Series, mistakes, ordered, unheard, validated
from training.report_figures import Shown
from training.report_fit import CountFit, fit_counts
from training.report_sweep import swept_settings
from training.report_tables import (
    Reference,
    full_table,
    number,
    ratio_table,
    reference_findings,
    reference_table,
    signed,
    test_error,
    with_std,
)
from training.settings import SHARED_SETTINGS
from training.techniques import TECHNIQUES, Recipe

WORST = 8
"""Classes that are listed as suffering."""
ASKED = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
"""Counts of images whose doubling is worth a line."""
LEAST = 0.005
"""Gain from which it is a whole point."""
MUCH_ERROR = 0.01
"""Standard error from which too few images validate."""
_OF_TECHNIQUES = {
    name
    for name in Recipe.__dataclass_fields__
    if any(getattr(technique.recipe, name) != getattr(Recipe(), name) for technique in TECHNIQUES.values())
}
"""Settings that tell techniques apart, such as the loss: the others of a recipe are the same for all."""
_OF_A_CELL = {"technique", "seed", *SHARED_SETTINGS, *_OF_TECHNIQUES}


def opening(groups: Sequence[Group], choice: Choice | None) -> list[str]:
    """Return the paragraphs that say what the user should do."""
    if choice is None:
        text = (
            "No technique can be recommended: none of the cells has validation images, and the test split is not "
            "there to choose by."
        )
        return [part for part in (f"## What to do\n\n{text}", _unlike_cells(groups)) if part]
    parts = ["## What to do", _recommendation(choice, groups), _at_each_ratio(groups, choice.technique)]
    parts.append(_unlike_cells(groups))
    chosen = _chosen_groups(groups, choice)
    hardest = chosen[-1]
    series = hardest.series[choice.technique]
    settings = f", with the settings of ratio {hardest.label} here" if len(chosen) > 1 else ""
    parts.append(f"To train it on your data{settings}: {code(fit_command(series))}")
    return [part for part in (*parts, *suffering(hardest, series), more_images(hardest, series)) if part]


def _chosen_groups(groups: Sequence[Group], choice: Choice) -> list[Group]:
    return [group for group in groups if choice.technique in group.series]


def _recommendation(choice: Choice, groups: Sequence[Group]) -> str:
    name, scores = choice.technique, choice.scores
    if len(scores) == 1:
        found = (
            f"Only `{name}` was" if validated(groups) == {name} else "No two techniques on the same data and seed were"
        )
        return (
            f"{found} measured on validation, so that there is nothing to choose from. Add others: "
            "`python -m training compare … --techniques all`."
        )
    second = list(scores)[1]
    over = f"over ratio{'s' * (len(choice.labels) > 1)} {_enumerated(choice.labels)}"
    seeds = f"seed{'s' * (len(choice.seeds) > 1)} {_enumerated([str(seed) for seed in choice.seeds])}"
    lines = [
        f"**Ship `{name}`.** Of {len(scores)} techniques it has the best balanced accuracy on validation: "
        f"{scores[name]:.4f}, mean {over} and {seeds}; next is `{second}` with {scores[second]:.4f}. "
        "The test split had no part in this choice."
    ]
    rest = ordered({name for group in groups for name in group.series} - set(scores))
    if rest:
        lines.append(f"Not run on all of these, and left out: {_enumerated([f'`{other}`' for other in rest])}.")
    if choice.error is not None:
        few = ", because few images validate" if choice.error >= MUCH_ERROR else ""
        lines.append(f"The standard error of such a score is about {choice.error:.3f}{few}.")
    lines += _silent(_chosen_groups(groups, choice))
    if choice.close:
        lines.append(_cheaper(choice, groups))
    others = {label: best for label, best in choice.by_group.items() if best != name}
    if others:
        found = _enumerated([f"`{best}` at {label}" for label, best in others.items()])
        lines.append(f"Ratio by ratio, validation would choose otherwise: {found}.")
    return " ".join(lines)


def _silent(groups: Sequence[Group]) -> list[str]:
    """Say which classes had no say in the choice, and why."""
    told: dict[str, list[str]] = {}
    for group in groups:
        if count := unheard(group.cell):
            why = "no image in val.json" if "val" in group.cell.run.datastore else "too few images for one to validate"
            told.setdefault(why, []).append(f"{count} of {len(group.counts)} classes at {group.label}")
    return [f"{_enumerated(classes)} have {why}, and had no say in it." for why, classes in told.items()]


def _cheaper(choice: Choice, groups: Sequence[Group]) -> str:
    group = _chosen_groups(groups, choice)[-1]
    known = [name for name in (choice.technique, *choice.close) if name in group.series]
    smallest = min(known, key=lambda name: group.series[name].parameters)
    text = f"Within that error it can't be told apart from {_enumerated([f'`{name}`' for name in choice.close])}"
    own, least = (group.series[name].parameters for name in (choice.technique, smallest))
    if least < own:
        text += f", of which `{smallest}` is the smallest: {least / 1e6:.1f} M parameters instead of {own / 1e6:.1f} M"
    return text + "."


def _at_each_ratio(groups: Sequence[Group], technique: str) -> str:
    rows = []
    for group in groups:
        if technique in group.series:
            series = group.series[technique]
            gain = None if technique == BASELINE else group.improvement(technique)
            figures = [number(series.spread(name).mean) for name in ("many", "medium", "few", "ece")]
            rows.append([group.label, with_std(series.spread("top1")), signed(gain), *figures])
    header = ["ratio", f"test top-1 of `{technique}`", "over baseline", "many", "medium", "few", "ECE"]
    return table(header, rows)


def suffering(group: Group, series: Series) -> list[str]:
    """Return the list of the classes of the lowest accuracy, and what they are taken for."""
    recall, classes = series.recall, group.cell.run.classes
    order = [int(i) for i in np.argsort(recall, kind="stable") if not np.isnan(recall[i])][
        : min(WORST, len(classes) // 2)
    ]
    if not order:
        return []
    matrix = series.confusion
    rows = []
    for i in order:
        taken = [] if matrix is None else [f"{classes[j]} ({share:.0%})" for j, share in mistakes(matrix, i)]
        rows.append([classes[i], str(group.counts[i]), f"{recall[i]:.1%}", ", ".join(taken) or "-"])
    text = f"**Classes that suffer most** with `{series.technique}` at ratio {group.label}:"
    header = ["class", "training images", "test accuracy", "mistaken for"]
    return [text, table(header, rows, "lrrl")]


def more_images(group: Group, series: Series) -> str:
    """Say what doubling the images of a class would buy, where the classes' accuracy and counts support it."""
    fit = fit_counts(group, series)
    title = f"**What more images would buy** (`{series.technique}`, ratio {group.label}):"
    if fit is None:
        return f"{title} nothing can be said: the classes are too few, or their numbers of images too much alike."
    gains = _gains(fit)
    if not gains:
        return f"{title} nothing can be said: the accuracy of a class doesn't clearly rise with its images here."
    lines = [
        f"- doubling the images of a class with {count} images: about +{100 * gain:.0f} points "
        f"(95% interval {100 * low:.0f} to {100 * high:.0f})"
        for count, (gain, low, high) in gains.items()
    ]
    note = "This compares classes, which also differ in how hard they are: a guide, not a promise."
    return "\n".join([title, "", *lines, "", note])


def _gains(fit: CountFit) -> dict[int, tuple[float, float, float]]:
    counts = [count for count in ASKED if fit.smallest <= count and 2 * count <= fit.largest] or [fit.smallest]
    gains = {count: fit.doubling(count) for count in counts if fit.supported}
    return {count: gain for count, gain in gains.items() if gain[1] >= LEAST}


def tables(groups: Sequence[Group], reference: Reference) -> list[str]:
    """Return the tables, each with what to know of it."""
    error = test_error(groups)
    noise = f" The test images alone leave a standard error of up to {error:.4f}." if error is not None else ""
    seeds = any(len(series.cells) > 1 for group in groups for series in group.series.values())
    spread = (
        " `±` is the standard deviation over seeds; a figure without is of one seed." if seeds else " One seed each."
    )
    parts = [
        "## Techniques by imbalance ratio",
        f"Top-1 on the test split; the ratio is smallest class / largest class.{spread}{noise}",
        ratio_table(groups),
    ]
    if reference:
        parts += [
            "## Beside the course project",
            "Our top-1, and in brackets how far it is from what the course project published, whose table this one "
            "follows: the same classes, EfficientNets at 224 pixels. Its bagging is with or without class weights.",
            reference_table(groups, reference),
            "\n".join(f"- {line}" for line in reference_findings(groups, reference)),
        ]
    return parts


def every_figure(groups: Sequence[Group]) -> list[str]:
    """Return the table of all figures."""
    text = (
        f"On the test split. Many, medium and few are the mean accuracy of classes with more than {MANY_OVER}, "
        f"{FEW_UNDER} to {MANY_OVER}, and fewer than {FEW_UNDER} training images; `-` is a group without classes. "
        "The same is in [table.csv](table.csv)."
    )
    return ["## Every figure", text, full_table(groups)]


def illustrated(heading: str, shown: Sequence[Shown]) -> list[str]:
    """Return a section of figures, each with its title, its caption and its data."""
    parts = [
        f"**{item.title}.** {item.caption} ([data](figures/{item.name}.csv))\n\n"
        f"![{heading}: {item.title.lower()}](figures/{item.name}.png)"
        for item in shown
    ]
    return [f"## {heading}", *parts] if parts else []


def conditions(cells: Sequence[Cell], groups: Sequence[Group]) -> list[str]:
    """Return what all cells have in common, and what those of one ratio have and others don't."""
    first = cells[0].run
    differing = _differing(groups)
    same = {key: value for key, value in first.config.items() if key not in {*_OF_A_CELL, *differing}}
    given = ", ".join(f"{key} {flag_value(value)}" for key, value in same.items() if value not in (None, {}, []))
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    return [
        "## How it was measured",
        f"{len(cells)} cells. Settings of all: {given or 'none'}. Versions: {versions}.",
        *(
            f"`{setting}` is {_enumerated(values)}, for all techniques of a ratio."
            for setting, values in differing.items()
            if values
        ),
    ]


def _unlike_cells(groups: Sequence[Group]) -> str:
    """Return a warning where techniques of one data set were trained by other settings."""
    apart = [setting for setting, values in _differing(groups).items() if not values]
    if not apart:
        return ""
    return (
        f"**Not all cells were trained alike: they differ in {_enumerated(apart)}. "
        "A difference between techniques may come from that.**"
    )


def _differing(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Return the settings that not all cells share, with `_at_ratios` of each."""
    cells = [cell for group in groups for cell in _cells(group)]
    return {setting: _at_ratios(setting, groups) for setting in swept_settings(cells) if setting not in _OF_A_CELL}


def _cells(group: Group) -> list[Cell]:
    return [cell for series in group.series.values() for cell in series.cells]


def _at_ratios(setting: str, groups: Sequence[Group]) -> list[str]:
    """Return a setting's value at each ratio, or nothing where the cells of one differ in it."""
    found = [{flag_value(cell.run.config.get(setting)) for cell in _cells(group)} for group in groups]
    if any(len(values) > 1 for values in found):
        return []
    return [f"{values.pop()} at ratio {group.label}" for group, values in zip(groups, found, strict=True)]


def _enumerated(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
