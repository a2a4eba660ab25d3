"""`bentoml serve` with a model that can't be served: one clear line and a non-zero exit."""

import subprocess
from pathlib import Path

import onnx
import pytest

from tests.keys import key_pair
from tests.serving.conftest import PATIENCE_S, ROOT, free_port, serve_command, serve_environment


def start(**variables: str) -> "subprocess.CompletedProcess[str]":
    command, environment = serve_command(free_port()), serve_environment(**variables)
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def foreign_model(path: Path) -> Path:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [out])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "python -m export"),
        ("cut short", "damaged or cut short"),
        ("foreign", "not a Tailstack model"),
    ],
)
def test_a_model_that_cannot_be_served(kind: str, says: str, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if kind == "cut short":
        path.write_bytes(tiny_model.read_bytes()[:100_000])
    elif kind == "foreign":
        foreign_model(path)
    result = start(TAILSTACK_MODEL=str(path))
    output = result.stdout + result.stderr
    assert result.returncode == 1
    assert says in output
    assert "Traceback" not in output


def test_a_wrong_sidecar(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_model.read_bytes())
    path.with_name("model.onnx.sha256").write_text("0" * 64 + "  model.onnx\n")
    result = start(TAILSTACK_MODEL=str(path))
    assert result.returncode == 1
    assert "is not the file that model.onnx.sha256 describes" in result.stdout + result.stderr


def test_a_model_without_the_signature_that_is_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    _, public = key_pair(tmp_path)
    result = start(TAILSTACK_MODEL=str(tiny_model), TAILSTACK_PUBLIC_KEY=str(public))
    assert result.returncode == 1
    assert "is not signed: ensemble.onnx.sig isn't beside it" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"TAILSTACK_DEVICE": "tpu"},
        {"TAILSTACK_MAX_BYTES": "many"},
        {"TAILSTACK_API_KEYS": " , "},
        {"TAILSTACK_ADMIN_KEYS": ""},
        {"TAILSTACK_RELOAD_INTERVAL": "0", "TAILSTACK_WORKERS": "2"},
        {"TAILSTACK_DRAIN": "30", "TAILSTACK_GRACE": "30"},
    ],
)
def test_a_setting_that_cannot_be_used(tiny_model: Path, variables: dict[str, str]) -> None:
    result = start(TAILSTACK_MODEL=str(tiny_model), **variables)
    assert result.returncode == 1
    assert all(name in result.stderr for name in variables)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("content", "says"), [(None, "can't be read"), ("# none\n", "has no key")])
def test_a_keys_file_that_cannot_be_used(tiny_model: Path, tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    result = start(TAILSTACK_MODEL=str(tiny_model), TAILSTACK_API_KEYS_FILE=str(path))
    assert result.returncode == 1
    assert says in result.stdout + result.stderr


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="CUDA may work here")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_that_is_not_there(tiny_model: Path, device: str) -> None:
    result = start(TAILSTACK_MODEL=str(tiny_model), TAILSTACK_DEVICE=device)
    assert result.returncode == 1
    assert f"device {device} was asked for" in result.stdout + result.stderr
