"""What can't be exported: a clear error, and no file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from export import parity
from export.export import export
from export.graph import build_graph
from tailstack.errors import UserError
from tailstack.run import CONFIG_FILE, ENSEMBLE_FILE, WEIGHTS_FILE, RunRecord, learner_folder
from tests.conftest import CLASSES, ROOT
from tests.export.runs import copied, edit

Array = npt.NDArray[np.float32]


def test_a_graph_that_answers_otherwise_leaves_no_file(
    tiny_run: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_wrong(*_: object) -> onnx.ModelProto:
        model = onnx.load(tiny_model)
        weights = next(tensor for tensor in model.graph.initializer if "classifier.weight" in tensor.name)
        changed = onnx.numpy_helper.to_array(weights) * np.float32(1.01)
        weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
        return model

    monkeypatch.setitem(export.__globals__, "build_graph", build_wrong)
    monkeypatch.setitem(export.__globals__, "accept_prior", lambda *_: None)  # that graph has the input already
    with pytest.raises(UserError, match=r"doesn't answer as torch does: at batch 1 .*no file was written"):
        export(tiny_run, tmp_path / "models" / "a.onnx")
    assert list((tmp_path / "models").iterdir()) == []


def test_an_architecture_that_torch_cannot_export() -> None:
    class Unexportable(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return images.float().nonzero(), torch.linalg.eigvals(images.float()[..., :3, 0])

    with pytest.raises(UserError, match="torch can't export these architectures") as caught:
        build_graph(Unexportable(), (4, 4))
    assert len(str(caught.value).splitlines()) == 1


def test_operators_outside_the_standard_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_model)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"outside the ONNX standard: com\.microsoft"):
        parity.check_graph(tmp_path / "a.onnx")


def test_an_invalid_graph_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_model)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(UserError, match="fails onnx's check"):
        parity.check_graph(tmp_path / "a.onnx")


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="doesn't exist; make one with: python -m training fit"):
        export(tmp_path / "none", tmp_path / "a.onnx")


def test_a_run_that_is_not_finished(tiny_run: Path, tmp_path: Path) -> None:
    run = copied(tiny_run, tmp_path)
    (run / ENSEMBLE_FILE).unlink()
    with pytest.raises(UserError, match=r"isn't finished; go on with: python -m training fit --config"):
        export(run, tmp_path / "a.onnx")


@pytest.mark.parametrize("damage", ["missing", "cut short", "of another network"])
def test_weights_that_do_not_fit(tiny_run: Path, tmp_path: Path, damage: str) -> None:
    run = copied(tiny_run, tmp_path)
    weights = learner_folder(run, RunRecord.load(run).learners[0].name) / WEIGHTS_FILE
    if damage == "missing":
        weights.unlink()
    elif damage == "cut short":
        os.truncate(weights, 1000)
    else:
        records = json.loads((run / ENSEMBLE_FILE).read_text())["learners"]
        edit(run, learners=[{**records[0], "architecture": "test_resnet"}, records[1]])
    with pytest.raises(UserError, match=r"weights\.safetensors doesn't hold the weights of"):
        export(run, tmp_path / "a.onnx")


def test_a_datastore_that_is_gone(tiny_run: Path, tmp_path: Path) -> None:
    run = copied(tiny_run, tmp_path)
    edit(run, datastore={"path": str(tmp_path / "gone")})
    with pytest.raises(UserError) as caught:
        export(run, tmp_path / "a.onnx")
    command = f"python -m training fit --config {run / CONFIG_FILE} --datastore DATASTORE --output {run}"
    assert f"in {tmp_path / 'gone'}, which doesn't exist" in str(caught.value)
    assert str(caught.value).endswith(command)


def test_a_datastore_that_has_changed_is_no_reason_to_leave_validation_out(
    tiny_run: Path, tiny_datastore: Path, tmp_path: Path
) -> None:
    run, store = copied(tiny_run, tmp_path), Path(shutil.copytree(tiny_datastore, tmp_path / "store"))
    edit(run, datastore={"path": str(store)})
    with (store / "test.json").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="has changed since"):
        export(run, tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_a_datastore_of_other_classes(tiny_run: Path, tmp_path: Path) -> None:
    run = copied(tiny_run, tmp_path)
    edit(run, classes=[*CLASSES[:-1], "oval"])
    with pytest.raises(UserError, match="other classes than the run"):
        export(run, tmp_path / "a.onnx")


def test_an_output_that_cannot_be_written_is_found_before_the_work(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(export.__globals__, "build_graph", lambda *_: pytest.fail("worked for nothing"))
    (tmp_path / "file").write_text("")
    for output in (tmp_path, tmp_path / "file" / "a.onnx"):
        with pytest.raises(UserError, match=r"is a folder|can't be made"):
            export(tiny_run, output)


def test_a_mistake_on_the_command_line_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "export", str(tmp_path / "none")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: run ")
