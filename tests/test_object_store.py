"""The four stages on an object store: a real S3 protocol on loopback holds the datastore, the run and the model."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import onnx
import pytest

from benchmarks.evaluation_file import EvalSettings, evaluate_file
from export.export import export
from tailstack import datastore as datastores
from tailstack.errors import UserError
from tailstack.run import WEIGHTS_FILE, RunRecord, learner_folder
from tests.serving.conftest import encoded, running, wait_for, web
from training.fit import fit
from training.prepare import prepare
from training.settings import FitSettings, PrepareSettings

ROOT = Path(__file__).parent.parent
DATASTORE, VARIANT = Path("s3://bucket/shapes"), Path("s3://bucket/shapes-imbalance-0.1")
RUN, MODEL = Path("s3://bucket/runs/shapes"), Path("s3://bucket/models/ensemble.onnx")
TINY: dict[str, Any] = {
    "architectures": ["test_efficientnet"],
    "technique": "baseline",
    "pretrained": False,
    "resolution": 32,
    "epochs": 3,
    "num_workers": 0,
}


@pytest.fixture
def another(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another machine: it has no copy of anything."""
    machine.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))


@pytest.fixture(scope="module")
def prepared(machine: pytest.MonkeyPatch, tiny_datastore: Path) -> None:
    prepare(PrepareSettings(source=str(tiny_datastore / "images"), output=DATASTORE, imbalance=[0.1]))


@pytest.fixture(scope="module")
def fitted(prepared: None, machine: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    machine.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("trainer")))
    return fit(FitSettings(datastore=VARIANT, output=RUN, **TINY))


@pytest.fixture(scope="module")
def exported(fitted: RunRecord, machine: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model's SHA-256."""
    machine.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("exporter")))
    export(RUN, MODEL)
    return hashlib.sha256(fsspec.filesystem("s3").cat(MODEL.as_posix().replace("s3:/", ""))).hexdigest()


def test_a_prepared_datastore_has_its_images(prepared: None, another: None, tiny_datastore: Path) -> None:
    # As consoles make them for a folder.
    for folder in ("shapes/", "shapes/images/", "shapes-imbalance-0.1/"):
        fsspec.filesystem("s3").call_s3("put_object", Bucket="bucket", Key=folder)
    ours, theirs = datastores.load(VARIANT), datastores.load(tiny_datastore)
    assert ours.classes == sorted(theirs.classes)
    assert len(ours.test) == len(theirs.test)
    assert ours.train.decode(0).shape == (32, 32, 3)
    assert not ours.train.root.resolve().is_relative_to(ours.path.resolve())


def test_a_run_goes_on_on_another_machine(fitted: RunRecord, machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It has the weights that it would have had without the stop."""
    settings = FitSettings(datastore=VARIANT, output=Path("s3://bucket/runs/stopped"), **TINY)

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    machine.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    with pytest.raises(KeyboardInterrupt):
        fit(settings, on_epoch=stop)
    machine.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    rows: list[dict[str, float]] = []
    record = fit(settings, on_epoch=rows.append)
    assert [row["epoch"] for row in rows] == [3]
    assert record.results == fitted.results
    weights = []
    for run in (RUN, settings.output):
        RunRecord.load(run)
        weights.append((learner_folder(run, fitted.learners[0].name) / WEIGHTS_FILE).read_bytes())
    assert weights[0] == weights[1]


def test_the_file_is_measured(exported: str, fitted: RunRecord, another: None) -> None:
    settings = EvalSettings(datastore=VARIANT, model=MODEL, against=["torch"], rounds=1, seconds=0.01)
    evaluation = evaluate_file(settings)
    assert evaluation.report["accuracy"]["top1"] == pytest.approx(fitted.results["top1"], abs=0.03)
    assert evaluation.report["against"]["torch"]["same_label"] == 1


def test_the_server_follows_the_file(exported: str, another: None, tmp_path: Path) -> None:
    with running(MODEL, tmp_path, TAILSTACK_RELOAD_INTERVAL="0.2") as server:

        def version() -> str:
            return str(web.post(f"{server.address}/classify", content=encoded()).json()["model"]["version"])

        assert version() == exported[:12]
        store, key = fsspec.filesystem("s3"), "bucket/models/ensemble.onnx"
        model = onnx.load_from_string(store.cat(key))
        model.doc_string = "new"
        content = model.SerializeToString()
        digest = hashlib.sha256(content).hexdigest()
        store.pipe(key, content)
        store.pipe(f"{key}.sha256", f"{digest}  ensemble.onnx\n".encode())
        wait_for(lambda: version() == digest[:12])


def test_a_bucket_that_is_not_there(machine: pytest.MonkeyPatch, fitted: RunRecord, another: None) -> None:
    with pytest.raises(UserError, match=r"datastore s3://none/photos doesn't exist"):
        datastores.load(Path("s3://none/photos"))
    with pytest.raises(UserError, match=r"s3://none/run can't be written: .*bucket"):
        fit(FitSettings(datastore=VARIANT, output=Path("s3://none/run"), **TINY))


def test_no_keys(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("HOME", str(tmp_path))
        command = [sys.executable, "-m", "export", "s3://bucket/runs/shapes", "--output", str(tmp_path / "m.onnx")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: s3://bucket/runs/shapes can't be read: ")
    assert "credentials" in done.stderr
    assert "Traceback" not in done.stderr
