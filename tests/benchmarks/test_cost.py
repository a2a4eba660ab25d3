"""The cost benchmark: every variant is measured every way, and its figures are those of the files."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from benchmarks import cost_variants
from benchmarks.cost_report import draw, markdown
from benchmarks.cost_variants import CostSettings, run_costs
from benchmarks.machine import describe_machine
from export.export import export
from export.run_forms import RunForms
from tailstack.errors import UserError
from tailstack.run import RunRecord
from tests.conftest import SMALL_LEARNERS


@pytest.fixture(scope="module")
def rows(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[cost_variants.Row]:
    def export_once(run: Path, path: Path, wanted: cost_variants.Wanted, forms: RunForms) -> None:
        """Export as asked, but in fp32: measuring is the same, and tests of int8 have their own place."""
        twin = path.with_name("cascade.onnx" if wanted.cascade else "plain.onnx")
        if twin.exists():
            shutil.copy(twin, path)
        else:
            export(run, path, wanted, forms=forms)

    settings = CostSettings(small_run, max_accuracy_drop=60, rounds=1, seconds=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost_variants, "export", export_once)
        return run_costs(settings, tmp_path_factory.mktemp("files"))


def test_every_variant_is_measured_every_way(rows: list[cost_variants.Row], small_run: Path) -> None:
    learners = [f"{k}-{architecture}" for k, (architecture, _) in enumerate(SMALL_LEARNERS)]
    variants = (*learners, "plain", "cascade", "int8", "int8 cascade", "int8 cascade 0.1")
    expected = {(name, runtime) for name in variants for runtime in ("onnxruntime", "openvino")}
    expected.add(("plain", "torch"))
    for threads in (1, 2):
        for batch in (1, 8):
            part = [row for row in rows if (row["threads"], row["batch"]) == (threads, batch)]
            assert {(row["variant"], row["runtime"]) for row in part} == expected
            alone = [row for row in part if row["variant"] in learners and row["runtime"] == "onnxruntime"]
            # Which one is the cheapest goes by medians, the ratios by pairs: noise may put another one below 1.
            assert 1 in [row["relative_to_lite0_fp32"] for row in alone]
    results = RunRecord.load(small_run).results
    for row in rows:
        assert row["ms_per_image"] > 0
        if row["variant"] == "plain":
            assert row["top1"] == pytest.approx(results["top1"])
            assert row["few"] == pytest.approx(results["few"])
            assert row["learners_used"] == len(SMALL_LEARNERS)
        elif "cascade" in row["variant"]:
            assert 1 <= row["learners_used"] <= len(SMALL_LEARNERS)


def test_the_drop_that_is_asked_for_is_each_forms_and_one_has_a_smaller_one() -> None:
    forms = cost_variants.ensemble_forms(0.3)
    assert forms["plain"].plain
    assert [(name, wanted.max_accuracy_drop) for name, wanted in forms.items() if not wanted.plain] == [
        ("cascade", 0.3),
        ("int8", 0.3),
        ("int8 cascade", 0.3),
        ("int8 cascade 0.1", 0.1),
    ]
    assert "int8 cascade 0.1" not in cost_variants.ensemble_forms(0.1)


@pytest.mark.parametrize("changes", [{"rounds": 0}, {"seconds": -1.0}, {"images": -1}])
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rounds has to be 1 or more"):
        run_costs(CostSettings(tmp_path, **changes), tmp_path)


def test_the_report_shows_every_row(rows: list[cost_variants.Row], tmp_path: Path) -> None:
    text = markdown(rows, {**describe_machine("CPUExecutionProvider", 2), "cores_of_others": 0.0})
    assert text.count("| plain, torch |") == 4
    assert json.loads(json.dumps(rows)) == rows
    draw(rows, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_gate_refuses_is_left_out(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_run: Path, path: Path, wanted: cost_variants.Wanted, **_: Any) -> None:
        if not wanted.plain:
            raise UserError("the release gate refuses this graph")
        path.touch()

    monkeypatch.setattr(cost_variants, "export", refuse)
    monkeypatch.setattr(cost_variants, "build_learner_graph", lambda *_: onnx.ModelProto())
    monkeypatch.setattr(cost_variants, "fuse", lambda *_: onnx.ModelProto())
    files = cost_variants.build_variants(small_run, RunRecord.load(small_run), tmp_path, 0.3)
    assert set(files) == {"plain", *(f"{k}-{architecture}" for k, (architecture, _) in enumerate(SMALL_LEARNERS))}
    assert "without int8 cascade: the release gate refuses" in capsys.readouterr().out


def test_a_student_is_measured_where_there_is_one(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    exported: dict[str, Path] = {}

    def note(source: Path, path: Path, *_: cost_variants.Wanted, **__: Any) -> None:
        exported[path.stem] = source

    monkeypatch.setattr(cost_variants, "export", note)
    monkeypatch.setattr(cost_variants, "build_learner_graph", lambda *_: onnx.ModelProto())
    monkeypatch.setattr(cost_variants, "fuse", lambda *_: onnx.ModelProto())
    record = RunRecord.load(run)
    assert "student" not in cost_variants.build_variants(run, record, tmp_path, 0.3)
    shutil.copytree(run, tmp_path / "run-student")
    assert cost_variants.build_variants(run, record, tmp_path, 0.3)["student"] == tmp_path / "student.onnx"
    assert exported["plain"] == run
    assert exported["student"] == exported["int8-student"] == tmp_path / "run-student"
    shutil.copytree(run, tmp_path / "run-taught")
    cost_variants.build_variants(run, record, tmp_path, 0.3)
    taught = [name for name, source in exported.items() if source == tmp_path / "run-taught"]
    assert taught == ["int8-cascade,-student-first", "int8-cascade-0.1,-student-first"]
