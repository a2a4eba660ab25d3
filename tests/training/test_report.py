"""The report: what it advises, what its tables and figures hold, and what it does with half a comparison."""

import csv
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tailstack.errors import UserError
from tests.training.synthetic import cell, cells
from training.cells import Cell
from training.report import report
from training.report_data import choose, gather, nominal_ratio
from training.report_figures import reliability_bins
from training.report_page import opening
from training.report_sweep import sweep_section
from training.report_tables import load_reference, reference_findings, reference_table

CLASSES = 12
TECHNIQUES = ("baseline", "stacking-wl", "tailstack")
LIMIT = 120_000
"""Bytes of a figure."""


def small(**values: Any) -> list[Cell]:
    return cells(**({"classes": CLASSES, "ratios": (0.02,), "techniques": TECHNIQUES, "test_images": 20} | values))


def write(folder: Path, found: list[Cell]) -> str:
    for item in found:
        item.save(folder)
    return report(folder).read_text(encoding="utf-8")


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def found() -> list[Cell]:
    return small(ratios=(1, 0.02))


@pytest.fixture(scope="module")
def folder(found: list[Cell], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "photos"
    write(path, found)
    return path


def test_the_table_holds_means_over_seeds(folder: Path, found: list[Cell]) -> None:
    rows = table(folder)
    assert ",".join(rows[0]) == (
        "ratio,technique,seeds,top1_mean,top1_std,average_learner_mean,many,medium,few,ece,improvement"
    )
    assert [(row["ratio"], row["technique"], row["seeds"]) for row in rows] == [
        ("1", "baseline", "2"),
        *(("0.02", technique, "2") for technique in TECHNIQUES),
    ]
    top1 = {
        technique: [item.run.results["top1"] for item in found if item.technique == technique and item.ratio < 1]
        for technique in TECHNIQUES
    }
    for row in rows[1:]:
        own = top1[row["technique"]]
        assert float(row["top1_mean"]) == pytest.approx(statistics.mean(own), abs=1e-4)
        assert float(row["top1_std"]) == pytest.approx(statistics.stdev(own), abs=1e-4)
        gain = statistics.mean(own) - statistics.mean(top1["baseline"])
        assert float(row["improvement"]) == pytest.approx(gain, abs=1e-4)
    assert rows[0]["few"] == ""


def test_the_page_opens_with_what_to_ship(folder: Path) -> None:
    page = (folder / "README.md").read_text(encoding="utf-8")
    best = choose(gather(small(ratios=(1, 0.02))))
    assert best
    assert page.startswith(f"# photos\n\n## What to do\n\n**Ship `{best.technique}`.**")
    assert f"--technique {best.technique} --epochs 5 --output RUN" in page
    assert (
        page.index("Classes that suffer") < page.index("What more images would buy") < page.index("| ratio | baseline")
    )


def test_the_choice_is_by_validation_and_never_by_test(tmp_path: Path) -> None:
    mixed = small(seeds=(0,))
    for item in mixed:
        item.run.validation["balanced"] = {"baseline": 0.5, "stacking-wl": 0.9, "tailstack": 0.6}[item.technique]
        item.run.results["top1"] = {"baseline": 0.5, "stacking-wl": 0.55, "tailstack": 0.99}[item.technique]
    page = write(tmp_path, mixed)
    assert "**Ship `stacking-wl`.**" in page
    assert "| 0.5000 | 0.5500 | **0.9900** |" in page


def test_techniques_are_compared_on_the_seeds_that_all_have() -> None:
    mixed = small(seeds=(0, 1))
    kept = [item for item in mixed if item.seed == 0 or item.technique != "tailstack"]
    for item in kept:
        item.run.validation["balanced"] = {"baseline": 0.5, "stacking-wl": 0.6, "tailstack": 0.7}[item.technique]
        if item.seed == 1:
            item.run.validation["balanced"] += 0.3  # an easy validation split, which tailstack never saw
    choice = choose(gather(kept))
    assert choice
    assert (choice.technique, choice.seeds) == ("tailstack", [0])
    assert choice.scores == pytest.approx({"tailstack": 0.7, "stacking-wl": 0.6, "baseline": 0.5})


def test_a_technique_that_was_run_on_one_of_three_data_sets_does_not_decide_alone() -> None:
    mixed = small(seeds=(0,), ratios=(0.1, 0.02, 0.005))
    kept = [item for item in mixed if nominal_ratio(item) == 0.1 or item.technique != "stacking-wl"]
    for item in kept:
        item.run.validation["balanced"] = {"baseline": 0.5, "stacking-wl": 0.9, "tailstack": 0.6}[item.technique]
    groups = gather(kept)
    choice = choose(groups)
    assert choice
    assert (choice.technique, choice.labels) == ("tailstack", ["0.1", "0.02", "0.005"])
    assert "Not run on all of these, and left out: `stacking-wl`." in opening(groups, choice)[1]


def test_what_validation_cannot_tell_apart_is_said() -> None:
    mixed = small(seeds=(0,))
    for item in mixed:
        item.run.validation["balanced"] = {"baseline": 0.5, "stacking-wl": 0.80, "tailstack": 0.801}[item.technique]
    groups = gather(mixed)
    choice = choose(groups)
    assert choice
    assert choice.error
    assert choice.close == ["stacking-wl"]
    assert "can't be told apart from `stacking-wl`" in opening(groups, choice)[1]


@pytest.mark.parametrize("ratio", [0.1, 0.005])
def test_classes_that_have_no_say_in_the_choice_are_told(ratio: float) -> None:
    groups = gather(cells(50, (ratio,), ("baseline", "stacking-wl")))
    page = "\n".join(opening(groups, choose(groups)))
    silent = sum(round(count * 0.1) == 0 for count in groups[0].cell.run.class_counts)
    assert (silent > 0) == (ratio == 0.005)
    assert (f"{silent} of 50 classes at 0.005 have too few images for one to validate" in page) == (silent > 0)
    assert ("had no say" in page) == (silent > 0)


def test_every_figure_is_there_small_and_beside_its_data(folder: Path) -> None:
    page = (folder / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\(figures/(.+?)\.png\)", page))
    names = ("class-histogram", "accuracy-by-count", "many-medium-few", "confusion", "training-curves", "reliability")
    own = {f"ratio-{ratio}-{name}" for ratio in ("1", "0.02") for name in names}
    own.remove("ratio-1-accuracy-by-count")  # there all have the same number
    assert linked == own | {"accuracy", "accuracy-by-parameters"}
    assert {path.stem for path in (folder / "figures").iterdir()} == linked
    for name in linked:
        path = folder / "figures" / f"{name}.png"
        assert path.stat().st_size < LIMIT
        with Image.open(path) as image:
            assert image.width > 900
            assert image.info.keys() <= {"gamma", "dpi"}
        assert len(path.with_suffix(".csv").read_text().splitlines()) > 1


def test_the_same_cells_give_the_same_bytes(found: list[Cell], folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "photos"
    write(again, list(reversed(found)))
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert [name for name in files if (folder / name).read_bytes() != (again / name).read_bytes()] == []


def test_the_classes_that_suffer() -> None:
    one = cell(4, 0.1, "baseline", 0)
    for item, accuracy in zip(one.run.per_class, (0.9, 0.2, 0.8, 0.5), strict=True):
        item["accuracy"] = accuracy
    one.run.confusion = [[18, 2, 0, 0], [1, 4, 12, 3], [4, 0, 16, 0], [10, 0, 0, 10]]
    groups = gather([one])
    page = "\n".join(opening(groups, choose(groups)))
    counts = one.run.class_counts
    assert f"| shy_animal_1 | {counts[1]} | 20.0% | shy_animal_2 (60%), animal_3 (15%) |" in page
    assert f"| animal_3 | {counts[3]} | 50.0% | animal_0 (50%) |" in page
    assert page.index("| shy_animal_1 | ") < page.index("| animal_3 | ")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"techniques": ("baseline",)}, "Only `baseline` was measured"),
        ({"techniques": ("stacking-wl", "tailstack")}, "**Ship `"),
        ({"classes": 2, "ratios": (0.1,)}, "too few"),
        ({"classes": 70, "ratios": (0.1,), "techniques": ("baseline",)}, "The 60 classes of the lowest accuracy"),
        ({"seeds": (3,)}, "seed 3;"),
    ],
)
def test_half_a_comparison(tmp_path: Path, values: dict[str, Any], expected: str) -> None:
    one_seed: dict[str, Any] = {"seeds": (0,)}
    mixed = small(**(one_seed | values))
    page = write(tmp_path, mixed)
    assert expected in page
    rows = table(tmp_path)
    assert all(row["top1_std"] == "" for row in rows)
    if all(item.technique != "baseline" for item in mixed):
        assert all(row["improvement"] == "" for row in rows)
        assert "average improvement" not in page


def test_a_technique_that_lacks_a_ratio_leaves_a_gap(tmp_path: Path) -> None:
    mixed = small(ratios=(0.1, 0.02), seeds=(0,))
    page = write(tmp_path, [item for item in mixed if (item.technique, item.ratio) != ("stacking-wl", 0.1)])
    tables = page.partition("## Techniques by imbalance ratio")[2]
    rows = [line for line in tables.splitlines() if line.startswith(("| 0.1 | 0.", "| average"))]
    assert re.fullmatch(r"\| 0\.1 \| \S+ \|  \| \*\*\S+\*\* \|", rows[0])
    assert "(of 1)" in rows[1]


def test_cells_without_details_have_fewer_figures_and_no_advice(tmp_path: Path) -> None:
    (one,) = small(techniques=("baseline",), seeds=(0,))
    one.run.validation, one.run.per_class, one.run.confusion, one.run.reliability = {}, [], None, []
    one.curves = {name: [] for name in one.curves}
    page = write(tmp_path, [one])
    assert "No technique can be recommended" in page
    assert sorted(path.name for path in (tmp_path / "figures").glob("*.png")) == [
        "ratio-0.02-class-histogram.png",
        "ratio-0.02-many-medium-few.png",
    ]


def test_data_sets_of_the_same_ratio_are_kept_apart(tmp_path: Path) -> None:
    mixed = small(techniques=("baseline",), seeds=(0,))
    other = mixed[0].model_copy(update={"datastore": "birds-imbalance-0.02"})
    write(tmp_path, [*mixed, other])
    assert [row["ratio"] for row in table(tmp_path)] == [
        "0.02 (birds-imbalance-0.02)",
        "0.02 (photos-imbalance-0.02)",
    ]


def test_names_that_mean_something_to_markdown_or_to_formulas(tmp_path: Path) -> None:
    one = cell(4, 0.1, "baseline", 0)
    one.run.classes[:] = ["$5", "cost^{$", "a|b", "long " * 30]
    for item, accuracy in zip(one.run.per_class, (0.9, 0.8, 0.1, 0.2), strict=True):
        item["accuracy"] = accuracy
    page = write(tmp_path, [one])
    assert f"| a\\|b | {one.run.class_counts[2]} | 10.0% |" in page
    with Image.open(tmp_path / "figures" / "ratio-0.1-confusion.png") as image:
        assert image.width < 2 * image.height


@pytest.mark.parametrize(
    ("datastore", "measured", "asked"),
    [
        ("cifar50-imbalance-0.005", 0.004, 0.005),
        ("cifar50", 0.992, 1.0),
        ("birds", 0.3712, 0.3712),
        ("birds-imbalance-small", 0.3712, 0.3712),
    ],
)
def test_the_ratio_is_the_one_that_was_asked_for(datastore: str, measured: float, asked: float) -> None:
    (one,) = small(techniques=("baseline",), seeds=(0,))
    assert nominal_ratio(one.model_copy(update={"datastore": datastore, "ratio": measured})) == asked


def test_cells_that_were_trained_differently_are_told(tmp_path: Path) -> None:
    mixed = small(techniques=("baseline",), seeds=(0,)) + small(techniques=("tailstack",), seeds=(0,), epochs=9)
    page = write(tmp_path, mixed)
    # Before whoever reads no further has compared them.
    assert page.index("they differ in epochs.") < page.index("To train it on your data: ")
    alike = write(tmp_path / "alike", small(techniques=("baseline", "tailstack"), seeds=(0,)))
    assert "Not all cells were trained alike" not in alike
    longer = [small(ratios=(ratio,), seeds=(0,), epochs=epochs) for ratio, epochs in ((0.1, 5), (0.02, 9))]
    by_ratio = write(tmp_path / "by ratio", [*longer[0], *longer[1]])
    assert "`epochs` is 5 at ratio 0.1 and 9 at ratio 0.02, for all techniques of a ratio." in by_ratio
    assert "Not all cells were trained alike" not in by_ratio
    assert "To train it on your data, with the settings of ratio 0.02 here: " in by_ratio
    grown = [small(ratios=(ratio,), seeds=(0,), grow_from=pixels) for ratio, pixels in ((0.1, 64), (0.02, 0))]
    assert "`grow_from` is 64 at ratio 0.1 and 0 at ratio 0.02, for all techniques of a ratio." in write(
        tmp_path / "grown", [*grown[0], *grown[1]]
    )
    slower = small(techniques=("tailstack",), seeds=(0,), body_lr=0.3)
    by_hand = write(tmp_path / "slower", [*small(techniques=("baseline",), seeds=(0,), body_lr=1.0), *slower])
    assert "they differ in body_lr." in by_hand


def test_bins_over_seeds_give_the_calibration_error() -> None:
    (group,) = gather(small(techniques=("baseline",), seeds=(0,)))
    series = group.series["baseline"]
    images, confidence, accuracy = reliability_bins(series)
    full = images > 0
    error = np.sum(images[full] * np.abs(confidence - accuracy)[full]) / images.sum()
    assert error == pytest.approx(series.spread("ece").mean)


def test_beside_the_course_project(tmp_path: Path) -> None:
    mixed = cells(ratios=(0.02,), techniques=("baseline", "stacking", "stacking-wl"), seeds=(0,), test_images=10)
    assert load_reference(gather(mixed)) == {}  # as many classes, but others
    top1 = {"baseline": 0.6404, "stacking": 0.6514, "stacking-wl": 0.7453}
    for item in mixed:
        item.run.classes[:3] = ["aquarium_fish", "lawn_mower", "maple_tree"]
        item.run.results["top1"] = top1[item.technique]
    groups = gather(mixed)
    reference = load_reference(groups)
    assert len(reference) == 6
    text = reference_table(groups, reference)
    assert "| 0.02 | 0.6404 (+0.0100) | 0.6514 (-0.0100) | 0.7453 (+0.0200) |" in text
    assert "| +0.0110 (there +0.0310) | +0.1049 (there +0.0949) |" in text
    assert reference_findings(groups, reference) == [
        "Below the course project's figure: `stacking` at 0.02 (-0.0100).",
        "Ratio 0.02: stacking-wl above stacking above baseline, as there.",
    ]
    assert "## Beside the course project" in write(tmp_path, mixed)


def sweep_cells() -> list[Cell]:
    trials = []
    for batch in (16, 64):
        for rate in (1e-3, 2e-3):
            one = cell(CLASSES, 0.1, "baseline", 0, batch_size=batch, lr=rate, output=f"runs/{batch}-{rate}")
            one.run.validation["top1"] = 0.5 + batch / 1000 - rate
            trials.append(one)
    return trials[:-1]  # the last was stopped early


def test_a_sweep_of_batch_size_and_learning_rate(tmp_path: Path) -> None:
    text = sweep_section(sweep_cells(), tmp_path, "grid")
    assert "Best of 3 finished trials on validation: batch_size 64, lr 0.001, with 0.5630 top-1" in text
    assert "from ImageNet weights, 5 epochs at 96 pixels, seed 0." in text
    assert "| batch_size | lr | validation top-1 | test top-1 | parameters |" in text
    with (tmp_path / "figures" / "grid-batch-size-lr.csv").open(newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        ("16", "0.001", "0.5150"),
        ("16", "0.002", "0.5140"),
        ("64", "0.001", "0.5630"),
        ("64", "0.002", ""),
    ]
    assert (tmp_path / "figures" / "grid-batch-size-lr.png").stat().st_size < LIMIT


def test_a_sweep_of_architectures_inside_a_comparison(tmp_path: Path) -> None:
    write(tmp_path, small(techniques=("baseline",), seeds=(0,)))
    inner = tmp_path / "architectures"
    for k, name in enumerate(["resnet18", "resnet50", "lcnet_050"]):
        one = cell(CLASSES, 0.1, "baseline", k, architectures=[name])
        one.run.config["seed"] = 0
        one.run.learners[0].architecture, one.run.learners[0].parameters = name, 10_000_000 * (k + 1)
        one.save(inner)
    (inner / "sweep.csv").write_text("architectures,val_top1\n")
    page = report(tmp_path).read_text(encoding="utf-8")
    assert "## Sweep: architectures" in page
    assert "(figures/architectures-parameters.png)" in page
    rows = (tmp_path / "figures" / "architectures-parameters.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == {"resnet18", "resnet50", "lcnet_050"}
    assert report(inner).read_text(encoding="utf-8").count("## Sweep: sweep") == 1


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training compare"):
        report(tmp_path)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a.json").write_text("{}")
    with pytest.raises(UserError, match="form"):
        report(tmp_path)
