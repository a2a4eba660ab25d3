"""`python -m export verify`: a file that is what it says passes, and each way of not being it is named."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import onnx
import pytest

from export.verify import checks, verify
from tailstack.artifact import Artifact
from tailstack.errors import UserError
from tailstack.files import sha256, write_text
from tests.conftest import ROOT


@pytest.fixture
def file(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the exported file and its sidecar."""
    for name in ("ensemble.onnx", "ensemble.onnx.sha256"):
        shutil.copy(tiny_model.with_name(name), tmp_path)
    return tmp_path / "ensemble.onnx"


def change(file: Path, **fields: object) -> None:
    """Write other metadata into the file, and a sidecar that fits."""
    model = onnx.load(file)
    artifact = Artifact.from_properties({item.key: item.value for item in model.metadata_props}, file)
    onnx.helper.set_model_props(model, artifact.model_copy(update=fields).to_properties())
    onnx.save(model, file)
    write_text(file.with_name(f"{file.name}.sha256"), f"{sha256(file)}  {file.name}\n")


def artifact_of(file: Path) -> Artifact:
    return Artifact.from_properties({item.key: item.value for item in onnx.load(file).metadata_props}, file)


def test_an_exported_file_is_what_it_says(file: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    found = list(checks(file))
    assert all(check.passed for check in found)
    assert [check.name.split()[0] for check in found] == [
        *("SHA-256", "onnx's", "classes", "train.json"),
        *("top1", "balanced", "many", "medium", "few", "ece", "nll"),
    ]
    moved = shutil.copytree(tiny_datastore, tmp_path / "moved")
    assert list(checks(file, moved)) == found


def test_the_command_prints_a_table_and_fails_by_name(file: Path) -> None:
    command = [sys.executable, "-m", "export", "verify", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"top1 on 57 images .*✓", done.stdout)
    write_text(file.with_name("ensemble.onnx.sha256"), f"{'0' * 64}  ensemble.onnx\n")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: {file} is not what it says of itself: SHA-256\n"


def test_no_sidecar(file: Path) -> None:
    file.with_name("ensemble.onnx.sha256").unlink()
    with pytest.raises(UserError, match=r"itself: SHA-256$"):
        verify(file)


def test_figures_that_are_too_good(file: Path) -> None:
    card = artifact_of(file).validation
    assert card is not None
    assert card.figures["top1"] is not None
    better = {**card.figures, "top1": card.figures["top1"] + 0.01}
    change(file, validation=card.model_copy(update={"figures": better}))
    with pytest.raises(UserError, match=r"itself: top1 on 57 images$"):
        verify(file)


def test_weights_that_were_changed(file: Path) -> None:
    model = onnx.load(file)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.raw_data = bytes(len(largest.raw_data))
    onnx.save(model, file)
    with pytest.raises(UserError, match=r"itself: SHA-256, .*nll"):
        verify(file)


def test_a_data_set_that_has_changed(file: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_datastore, tmp_path / "moved")
    text = (moved / "train.json").read_text()
    (moved / "train.json").write_text(text + "\n")
    with pytest.raises(UserError, match=r"itself: train\.json$"):
        verify(file, moved)


def test_an_operator_outside_the_standard(file: Path) -> None:
    model = onnx.load(file)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, file)
    change(file)
    with pytest.raises(UserError, match=r"itself: onnx's check$"):
        verify(file)


def test_a_file_without_figures(file: Path, tmp_path: Path) -> None:
    change(file, validation=None)
    assert [check.name for check in checks(file, tmp_path / "gone")] == [
        "SHA-256",
        "onnx's check",
        "figures on validation",
    ]


def test_no_file_or_no_data_set(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="doesn't exist; make one"):
        verify(tmp_path / "none.onnx")
    with pytest.raises(UserError, match=r"datastore .*gone doesn't exist"):
        verify(file, tmp_path / "gone")
    change(file, provenance={**artifact_of(file).provenance, "datastore": {"path": str(tmp_path / "moved")}})
    with pytest.raises(UserError, match=r"data set in .*moved, which doesn't exist: add --datastore"):
        verify(file)


def test_a_file_in_an_object_store(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    for path in (file, file.with_name(f"{file.name}.sha256")):
        store.pipe(f"/audited/{path.name}", path.read_bytes())
    assert all(check.passed for check in checks(Path("memory://audited/ensemble.onnx")))
    store.pipe("/audited/ensemble.onnx.sha256", b"0" * 64)
    with pytest.raises(UserError, match=r"^memory://audited/ensemble\.onnx is not what it says of itself: SHA-256$"):
        verify(Path("memory://audited/ensemble.onnx"))
    with pytest.raises(UserError, match=r"^model memory://audited/none\.onnx doesn't exist; make one"):
        verify(Path("memory://audited/none.onnx"))
