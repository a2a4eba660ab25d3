"""`python benchmarks/eval.py` on the tiny model: the figures, the report, and what is refused."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix

from benchmarks.evaluation import run_evaluation
from benchmarks.evaluation_contract import EvalSettings
from benchmarks.evaluation_file import BATCHES, measure
from benchmarks.evaluation_report import markdown
from benchmarks.machine import OtherLoad
from benchmarks.predictors import OnnxModel, Probabilities
from tailstack import datastore as datastores
from tailstack.datastore import Datastore
from tailstack.errors import UserError
from tailstack.files import sha256
from tailstack.images import Pixels
from tailstack.run import RunRecord
from tests.conftest import CLASSES, LEARNERS, ROOT, SIZE, TEST_IMAGES, write_run

FIGURES = ("accuracy-by-count", "confusion", "latency", "reliability", "throughput")


def evaluated(model: Path, datastore: Path, **changes: Any) -> dict[str, Any]:
    return run_evaluation(EvalSettings(datastore, model, threads=1, rounds=1, seconds=0, **changes)).report


def variant(source: Path, folder: Path, classes: list[str] | None = None, size: int = SIZE) -> Path:
    """Copy a datastore, with other class names or images scaled to another size."""
    store = datastores.load(source)
    for name, split in store.splits():
        for index, image in enumerate(split.images):
            path = folder / "images" / image
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.decode(index, (size, size))).save(path)
        images = folder / "images"
        datastores.save_split(folder / f"{name}.json", images, classes or store.classes, split.images, split.labels)
    return folder


def command(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "benchmarks/eval.py", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def store(tiny_datastore: Path) -> Datastore:
    return datastores.load(tiny_datastore)


@pytest.fixture(scope="module")
def report(tiny_model: Path, tiny_datastore: Path) -> dict[str, Any]:
    return evaluated(tiny_model, tiny_datastore, against=["torch", "openvino"])


def test_accuracy_is_what_fit_reported(report: dict[str, Any], tiny_run: Path) -> None:
    fitted = RunRecord.load(tiny_run).results
    assert report["accuracy"]["top1"] == pytest.approx(fitted["top1"], abs=1e-6)
    assert report["model"]["top1_in_fit"] == fitted["top1"]
    assert report["model"]["same_test_split"] is True
    # ECE and NLL are the file's own: export fits another temperature.
    for name in ("top5", "balanced", "macro_f1", "many", "medium", "few"):
        assert report["accuracy"][name] == pytest.approx(fitted[name], abs=1e-6), name


def test_accuracy_is_that_of_the_models_labels(report: dict[str, Any], tiny_model: Path, store: Datastore) -> None:
    model = OnnxModel.load(tiny_model, threads=1)
    labels = [model.predict(store.test.decode(i)[None]).argmax() for i in range(len(store.test))]
    assert report["accuracy"]["top1"] == pytest.approx(accuracy_score(store.test.labels, labels), abs=1e-6)
    assert [entry["label"] for entry in report["accuracy"]["per_class"]] == CLASSES
    assert all(entry["test_images"] == TEST_IMAGES for entry in report["accuracy"]["per_class"])


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_what_stands_beside_it_is_the_same_ensemble(report: dict[str, Any], name: str) -> None:
    other = report["against"][name]
    assert other["same_label"] == 1.0
    assert other["accuracy"]["top1"] == report["accuracy"]["top1"]
    assert other["accuracy"]["nll"] == pytest.approx(report["accuracy"]["nll"], abs=1e-3)


def test_the_report_is_the_contract(report: dict[str, Any], tiny_model: Path) -> None:
    assert {"accuracy", "latency_ms", "throughput", "model", "machine"} <= set(report)
    for part in (report, *report["against"].values()):
        assert set(part["latency_ms"]) == set(part["throughput"]) == {str(batch) for batch in BATCHES}
        for batch, latency in part["latency_ms"].items():
            assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
            assert part["throughput"][batch] > 0
    assert set(report["against"]["torch"]["speed_of_onnx"]) == {str(batch) for batch in BATCHES}
    assert report["model"]["sha256"] == sha256(tiny_model)
    assert len(report["model"]["learners"]) == len(LEARNERS)
    assert report["machine"]["threads"] == 1
    assert report["machine"]["provider"] == "CPUExecutionProvider"
    assert {"python", "onnxruntime", "openvino", "torch"} <= set(report["machine"]["versions"])
    assert json.loads(json.dumps(report)) == report


def test_the_page_shows_the_figures_of_the_report(report: dict[str, Any]) -> None:
    page = markdown(report)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    accuracy = {row[0]: row[1] for row in rows if len(row) == 11 and row[0]}
    assert accuracy["onnx"] == accuracy["torch"] == f"{report['accuracy']['top1']:.4f}"
    speeds = {row[1]: row[7] for row in rows if len(row) == 8 and row[0] == "torch"}
    expected = report["against"]["torch"]["speed_of_onnx"]
    assert speeds == {batch: f"{speed:.2f}x" for batch, speed in expected.items()}


def test_the_report_names_what_the_model_is_worst_at(
    report: dict[str, Any], tiny_model: Path, store: Datastore
) -> None:
    model = OnnxModel.load(tiny_model, threads=1)
    labels = [model.predict(store.test.decode(i)[None]).argmax() for i in range(len(store.test))]
    matrix = confusion_matrix(store.test.labels, labels, labels=range(len(CLASSES)))
    assert report["confusion"] == matrix.tolist()
    recalls = np.diag(matrix) / matrix.sum(axis=1)
    assert report["worst_class"]["accuracy"] == pytest.approx(recalls.min(), abs=1e-6)
    assert report["worst_class"]["label"] == CLASSES[recalls.argmin()]
    assert sum(item["images"] for item in report["reliability"]) == len(labels)
    wrong = matrix * (1 - np.eye(len(CLASSES), dtype=int))
    true, taken = np.unravel_index(wrong.argmax(), wrong.shape)
    assert f"| {CLASSES[true]} as {CLASSES[taken]} | {wrong.max() / TEST_IMAGES:.0%} | {wrong.max()} |" in markdown(
        report
    )


def test_threads_are_measured_by_batch(tiny_model: Path, tiny_datastore: Path) -> None:
    report = run_evaluation(EvalSettings(tiny_datastore, tiny_model, threads=3, rounds=1, seconds=0)).report
    assert list(report["by_threads"]) == ["1", "2", "3"]
    assert report["by_threads"]["3"]["throughput"] == report["throughput"]
    assert all(rate > 0 for part in report["by_threads"].values() for rate in part["throughput"].values())
    assert "Images per second by threads" in markdown(report)


def test_each_system_is_timed_on_more_than_one_photo(tiny_model: Path, tiny_datastore: Path, store: Datastore) -> None:
    seen: dict[str, list[bytes]] = {"a": [], "b": []}

    def note(name: str, images: Pixels) -> Probabilities:
        seen[name].append(images.tobytes())
        return np.zeros((len(images), len(CLASSES)), np.float32)

    systems = {name: partial(note, name) for name in seen}
    artifact = OnnxModel.load(tiny_model, threads=1).artifact
    measure(systems, 1, artifact, store.test, EvalSettings(tiny_datastore, rounds=1, seconds=0))
    assert len(set(seen["a"])) > 1
    assert seen["a"] == seen["b"]


def test_threads_are_those_of_the_cores_that_may_be_used(
    tiny_model: Path, tiny_datastore: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    report = run_evaluation(EvalSettings(tiny_datastore, tiny_model, rounds=1, seconds=0)).report
    assert report["machine"]["threads"] == 3


def test_a_page_of_many_classes_lists_the_worst(report: dict[str, Any]) -> None:
    entries = [
        {**entry, "label": f"{k}", "accuracy": k / 200}
        for k in range(200)
        for entry in report["accuracy"]["per_class"][:1]
    ]
    page = markdown({**report, "accuracy": {**report["accuracy"], "per_class": entries}, "confusion": None})
    assert "The 100 classes of the lowest accuracy" in page
    assert "| 99 | 0.4950 |" in page
    assert "| 100 | 0.5000 |" not in page
    assert "mistaken" not in page


@pytest.mark.parametrize(("cores", "warned"), [(0.0, False), (0.05, False), (0.8, True)])
def test_a_busy_machine_is_said_so(report: dict[str, Any], cores: float, warned: bool) -> None:
    machine = {**report["machine"], "cores_of_others": cores}
    assert ("don't trust its latencies" in markdown({**report, "machine": machine})) == warned


class MachineTimes(NamedTuple):
    """What psutil says of the machine, in seconds."""

    user: float = 1000.0
    system: float = 100.0
    idle: float = 5000.0
    iowait: float = 50.0
    guest: float = 200.0


class OwnTimes(NamedTuple):
    """What psutil says of this process and of the children that it has waited for, in seconds."""

    user: float = 10.0
    system: float = 2.0
    children_user: float = 5.0
    children_system: float = 1.0


@pytest.mark.parametrize(
    ("machine", "own", "cores"),
    [
        (MachineTimes(idle=5008.0, iowait=58.0), OwnTimes(), 0.0),
        (MachineTimes(user=1003.0, system=101.0), OwnTimes(), 1.0),
        (MachineTimes(user=1003.0, system=101.0), OwnTimes(user=12.0, system=3.0), 0.25),
        (MachineTimes(user=1003.0, system=101.0), OwnTimes(children_user=8.0, children_system=2.0), 0.0),
        (MachineTimes(user=1002.0, guest=202.0), OwnTimes(), 0.5),
        # The two aren't read at the same moment.
        (MachineTimes(user=1001.0), OwnTimes(user=12.0), 0.0),
    ],
    ids=["idle", "others", "own", "children", "guests", "later"],
)
def test_the_load_of_others_is_seen_and_that_of_children_is_not(
    machine: MachineTimes, own: OwnTimes, cores: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines, owns, moments = iter([MachineTimes(), machine]), iter([OwnTimes(), own]), iter([20.0, 24.0])
    process = SimpleNamespace(cpu_times=lambda: next(owns))
    psutil = SimpleNamespace(cpu_times=lambda: next(machines), Process=lambda: process)
    monkeypatch.setattr("benchmarks.machine.psutil", psutil)
    monkeypatch.setattr("benchmarks.machine.time", SimpleNamespace(perf_counter=lambda: next(moments)))
    assert OtherLoad().cores() == pytest.approx(cores)


def test_a_file_alone_needs_no_run(tiny_model: Path, tiny_datastore: Path) -> None:
    report = evaluated(tiny_model, tiny_datastore, run=Path("nowhere"))
    assert report["against"] == {}
    assert report["accuracy"]["top1"] == report["model"]["top1_in_fit"]


def test_the_command_writes_json_and_markdown(tiny_model: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "tiny"
    done = command(
        "--model", tiny_model, "--datastore", tiny_datastore, "--output", folder, "--rounds", "1", "--seconds", "0.01"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads((folder / "eval.json").read_text())
    assert report["settings"] == {"rounds": 1, "seconds": 0.01, "datastore": str(tiny_datastore)}
    page = (folder / "eval.md").read_text()
    assert page.startswith(markdown(report).rstrip())
    assert f"{report['accuracy']['top1']:.4f}" in done.stdout
    drawn = sorted(path.name for path in folder.glob("*.png"))
    assert drawn == [f"eval-{name}.png" for name in FIGURES]
    assert sorted(re.findall(r"\]\((\S+)\)", page)) == drawn
    assert {path.name for path in folder.iterdir()} == {"eval.json", "eval.md", *drawn}
    for name in drawn:
        assert Image.open(folder / name).size[0] > 900


def test_another_test_split_is_named_as_such(tiny_model: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    folder = variant(tiny_datastore, tmp_path)
    store = datastores.load(folder)
    half = store.test.subset(np.arange(0, len(store.test), 2))
    datastores.save_split(folder / "test.json", half.root, store.classes, half.images, half.labels)
    report = evaluated(tiny_model, folder)
    assert report["model"]["same_test_split"] is False
    assert "on another test split" in markdown(report)


def test_other_classes_are_refused(tiny_model: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    folder = variant(tiny_datastore, tmp_path, classes=[*CLASSES[:4], "oval", "ring"])
    with pytest.raises(UserError, match=r"other classes than the model: class 4 is 'oval' instead of 'gradient'"):
        evaluated(tiny_model, folder)


def test_another_number_of_classes_is_refused(tiny_model: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    store = datastores.load(tiny_datastore)
    for name, split in store.splits():
        kept = split.subset(np.flatnonzero(split.labels < 4))
        datastores.save_split(tmp_path / f"{name}.json", kept.root, CLASSES[:4], kept.images, kept.labels)
    with pytest.raises(UserError, match="other classes than the model: 4 instead of 6"):
        evaluated(tiny_model, tmp_path)


def test_images_of_another_size_are_refused(tiny_model: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    folder = variant(tiny_datastore, tmp_path, size=64)
    with pytest.raises(UserError, match=r"for images of 32x32 pixels, and test\.json annotation 0 .* has 64x64"):
        evaluated(tiny_model, folder)


def test_other_weights_are_refused(tiny_model: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", tiny_datastore, LEARNERS, seed=1)
    with pytest.raises(UserError, match=r"has other weights than .* name its run with --run"):
        evaluated(tiny_model, tiny_datastore, against=["torch"], run=other)


def test_a_run_that_is_gone_is_refused(tiny_model: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone doesn't exist"):
        evaluated(tiny_model, tiny_datastore, against=["torch"], run=tmp_path / "gone")


def test_a_mistake_on_the_command_line_is_one_line(tiny_model: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(tiny_model.read_bytes()[:100_000])
    mistakes = {
        ("--model", tmp_path / "none.onnx", "--datastore", tiny_datastore): "python -m export",
        ("--model", cut, "--datastore", tiny_datastore): "damaged or cut short",
        ("--model", tiny_model, "--datastore", tmp_path / "none"): "none doesn't exist",
        ("--model", tiny_model, "--datastore", tiny_datastore, "--output", cut): "can't be made",
    }
    for arguments, message in mistakes.items():
        done = command(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
