"""`python -m export RUN --student ARCHITECTURE`: the student is made where there is none, and only then."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from export.student import student_of
from serving.runtime import Model
from tailstack.errors import UserError
from tailstack.files import read_json, write_json
from tailstack.run import ENSEMBLE_FILE, WEIGHTS_FILE, RunRecord, learner_folder, student_folder
from tests.conftest import ROOT, SMALL_LEARNERS
from training.fit import fit
from training.settings import FitSettings

NETWORK = SMALL_LEARNERS[0][0]
TINY: dict[str, Any] = {"pretrained": False, "resolution": 48, "epochs": 1, "batch_size": 32, "num_workers": 0}


@pytest.fixture
def teacher(small_run: Path, tmp_path: Path) -> Path:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    record = read_json(run / ENSEMBLE_FILE)
    write_json(run / ENSEMBLE_FILE, {**record, "config": {**record["config"], **TINY}})
    return run


def test_a_student_is_distilled_once_and_exported(teacher: Path, tmp_path: Path) -> None:
    output = tmp_path / "student.onnx"
    command = [sys.executable, "-m", "export", str(teacher), "--student", NETWORK, "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    student = student_folder(teacher)
    record = RunRecord.load(student)
    assert f"python -m training distill {teacher} --architecture {NETWORK}\n" in done.stdout
    assert f"the whole ensemble of {teacher} {RunRecord.load(teacher).results['top1']:.4f}" in done.stdout
    artifact = Model.load(output, max_batch=2).artifact
    assert (artifact.technique, [card.architecture for card in artifact.learners]) == ("student", [NETWORK])
    assert artifact.accuracy == record.results
    assert artifact.provenance["config"]["teacher"] == str(teacher)
    weights = learner_folder(student, record.learners[0].name) / WEIGHTS_FILE
    made = weights.stat().st_mtime_ns
    assert student_of(teacher, NETWORK) == student
    assert weights.stat().st_mtime_ns == made
    # A run that was made anew in the same folder has no student yet.
    learner = learner_folder(teacher, RunRecord.load(teacher).learners[0].name) / WEIGHTS_FILE
    before = learner.read_bytes()
    learner.write_bytes(bytes(len(before)))
    with pytest.raises(UserError, match="student of an earlier run"):
        student_of(teacher, NETWORK)
    learner.write_bytes(before)
    # A folder holds one student: that of another network is no other's.
    with pytest.raises(UserError, match="no student to export"):
        student_of(teacher, "test_resnet")


def test_a_cascade_begins_with_the_student(tiny_datastore: Path, tmp_path: Path) -> None:
    teacher, output = tmp_path / "run", tmp_path / "cascade.onnx"
    networks = [name for name, _ in SMALL_LEARNERS]
    fit(FitSettings(tiny_datastore, teacher, architectures=networks, val_fraction=0.3, **TINY))
    command = [sys.executable, "-m", "export", str(teacher), "--student", NETWORK, "--cascade", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    taught = student_folder(teacher, keep_others=True)
    assert f"--architecture {NETWORK} --keep_others true" in done.stdout
    artifact = Model.load(output, max_batch=2).artifact
    assert (artifact.technique, artifact.provenance["run"]) == ("taught", str(taught))
    assert [card.architecture for card in artifact.learners] == networks
    assert artifact.cascade is not None
    assert artifact.learners[artifact.cascade.order[0]].architecture == NETWORK
    assert student_of(teacher, NETWORK, keep_others=True) == taught


def test_a_finished_student_in_a_store_is_found(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files, teacher = fsspec.filesystem("memory"), Path("memory://student/run")
    made = Path(shutil.copytree(small_run, tmp_path / "run"))
    record = read_json(made / ENSEMBLE_FILE)
    write_json(made / ENSEMBLE_FILE, {**record, "config": {**record["config"], "architectures": [NETWORK]}})
    files.put(str(small_run), "/student/run", recursive=True)
    files.put(str(made), "/student/run-student", recursive=True)
    monkeypatch.setattr("export.student.subprocess.run", None)  # nothing is trained
    try:
        assert student_of(teacher, NETWORK) == student_folder(teacher)
    finally:
        files.rm("/student", recursive=True)
    said = capsys.readouterr().out
    assert "memory://student/run-student: top-1" in said
    assert "the whole ensemble of memory://student/run " in said


def test_no_teacher_no_student(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="doesn't exist"):
        student_of(tmp_path / "nowhere", NETWORK)


def test_a_student_lies_beside_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert student_folder(Path("runs/photos")) == Path("runs/photos-student")
    assert student_folder(Path("runs/photos"), keep_others=True) == Path("runs/photos-taught")
    monkeypatch.chdir(tmp_path)
    for run in (Path(), tmp_path / "a" / ".."):
        assert student_folder(run) == tmp_path.with_name(f"{tmp_path.name}-student")
