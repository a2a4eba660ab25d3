"""The sentences of a report's page: true of what was measured, and a command that a shell takes as it stands."""

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.synthetic import cell, cells
from training.cells import Cell
from training.report import report
from training.report_command import code, fit_command
from training.report_data import Group, choose, gather, validation_error
from training.report_page import opening
from training.report_sweep import sweep_section, swept_settings
from training.report_tables import load_reference, reference_table


def page_of(groups: list[Group]) -> str:
    return "\n".join(opening(groups, choose(groups)))


def test_names_of_classes_reach_the_command_through_a_shell() -> None:
    weights = dict.fromkeys(["café", "$5", "a`b", 'it\'s "so"', "no", "key: value", "\\n!"], 2.0)
    (group,) = gather([cell(4, 0.1, "baseline", 0, class_weights=weights, tau=[0.5, 1.0])])
    command = fit_command(group.series["baseline"])
    flags = command.removeprefix("python -m training fit")
    said = subprocess.run(["sh", "-c", f"printf '%s\\n' {flags}"], capture_output=True, text=True, check=True)
    words = said.stdout.splitlines()
    assert yaml.safe_load(words[words.index("--class_weights") + 1]) == weights
    assert "café" in command
    assert '--tau "[0.5, 1.0]"' in command
    assert f"To train it on your data: `` {command} ``" in page_of([group])


def test_where_a_run_was_trained_is_no_setting_of_it() -> None:
    at_home = {"strategy": "auto", "num_nodes": 1, "devices": 1, "cluster": None, "num_workers": None}
    on_many = {"strategy": "ddp", "num_nodes": 2, "devices": 4, "cluster": "auto", "num_workers": 8}
    mixed = [cell(12, 0.1, "baseline", 0, **at_home), cell(12, 0.1, "tailstack", 0, **on_many)]
    assert swept_settings(mixed) == ["technique"]
    (group,) = gather(mixed)
    assert "Not all cells were trained alike" not in page_of([group])
    command = fit_command(group.series["tailstack"])
    assert not [flag for name in on_many if (flag := f"--{name}") in command]


def test_code_with_backticks_in_it() -> None:
    assert [code("a"), code("a`b"), code("``")] == ["`a`", "`` a`b ``", "``` `` ```"]


def beside_the_project(ratios: dict[str, tuple[float, ...]]) -> str:
    mixed = [item for name, wanted in ratios.items() for item in cells(50, wanted, (name,), seeds=(0,), test_images=5)]
    for item in mixed:
        item.run.classes[:3] = ["aquarium_fish", "lawn_mower", "maple_tree"]
        item.run.results["top1"] = {"baseline": 0.6, "stacking": 0.7}[item.technique]
    groups = gather(mixed)
    return reference_table(groups, load_reference(groups)).splitlines()[-1]


def test_improvements_are_averaged_over_the_same_ratios() -> None:
    # There, stacking adds 0.0424 at 0.1, 0.0310 at 0.02 and 0.0180 at 0.005.
    both = beside_the_project({"baseline": (0.1, 0.02, 0.005), "stacking": (0.1, 0.02, 0.005)})
    assert both == "| average improvement |  | +0.1000 (there +0.0305) |"
    one = beside_the_project({"baseline": (0.1, 0.02), "stacking": (0.02, 0.005)})
    assert one == "| average improvement |  | +0.1000 (there +0.0310) |"
    # Ratios that the project didn't measure have no part in either average.
    assert beside_the_project({"baseline": (0.02, 0.3), "stacking": (0.02, 0.3)}) == one


@pytest.mark.parametrize(
    ("error", "said"), [(0.012, "about 0.012, because few images validate."), (0.001, "about 0.001.")]
)
def test_few_images_are_the_reason_of_a_large_error_only(error: float, said: str) -> None:
    groups = gather(cells(12, (0.1,), ("baseline", "tailstack"), seeds=(0,)))
    choice = choose(groups)
    assert choice
    assert (
        f"The standard error of such a score is {said}" in opening(groups, dataclasses.replace(choice, error=error))[1]
    )


def test_techniques_of_different_data_sets() -> None:
    one, other = cell(12, 0.1, "baseline", 0), cell(12, 0.02, "tailstack", 0)
    apart = page_of(gather([one, other]))
    assert "No two techniques on the same data and seed were measured on validation" in apart
    other.run.validation = {}
    assert "Only `baseline` was measured on validation" in page_of(gather([one, other]))


def test_classes_that_val_json_lacks() -> None:
    pair = cells(12, (0.1,), ("baseline", "tailstack"), seeds=(0,))
    for item in pair:
        item.run.datastore["val"] = "2" * 64
    assert validation_error(pair[0]) is None
    assert "had no say" not in page_of(gather(pair))
    for item in pair:
        item.run.validation_counts = [0, 0, *[30] * 10]
    assert validation_error(pair[0]) is not None
    assert "2 of 12 classes at 0.1 have no image in val.json, and had no say in it." in page_of(gather(pair))


def trials(name: str, values: list[Any]) -> list[Cell]:
    return [cell(12, 0.1, "baseline", 0, **{name: value}) for value in values]


@pytest.mark.parametrize(
    ("name", "values", "alike"),
    [
        ("lr", [0.1, 0.2], ", from ImageNet weights, 5 epochs at 96 pixels, seed 0."),
        ("pretrained", [True, False], ", 5 epochs at 96 pixels, seed 0."),
        ("resolution", [64, 96], ", from ImageNet weights, seed 0."),
    ],
)
def test_only_what_all_trials_share_is_told_of_all(tmp_path: Path, name: str, values: list[Any], alike: str) -> None:
    assert f"Trials on `photos-imbalance-0.1`{alike}\n" in sweep_section(trials(name, values), tmp_path)


def test_trials_of_several_seeds(tmp_path: Path) -> None:
    seeds = [cell(12, 0.1, "baseline", seed) for seed in (0, 1)]
    assert "Trials on `photos-imbalance-0.1`, from ImageNet weights, 5 epochs at 96 pixels.\n" in sweep_section(
        seeds, tmp_path
    )


def test_a_sweep_without_a_finished_trial_is_a_line(tmp_path: Path) -> None:
    cell(12, 0.1, "baseline", 0).save(tmp_path)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "sweep.csv").write_text("lr,val_top1\n")
    assert "## Sweep: begun\n\nNone of its trials is finished." in report(tmp_path).read_text(encoding="utf-8")
