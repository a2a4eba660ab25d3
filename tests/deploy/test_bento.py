"""`bentoml build`: a bento with the model in it and without torch, which serves by its own start command."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from tests.deploy.test_kubernetes import BENTO_USER
from tests.serving.conftest import PATIENCE_S, ROOT, START_LIMIT_S, encoded, free_port, serve_command, serve_environment

BENTOML = Path(sys.executable).with_name("bentoml")
SOURCES = ("serving", "tailstack", "bentofile.yaml", "requirements.lock", "LICENSE")


@dataclass(frozen=True)
class Bento:
    folder: Path
    home: Path
    """Where BentoML keeps it."""

    def requirements(self) -> dict[str, str]:
        """Versions by package."""
        lines = (self.folder / "env" / "python" / "requirements.txt").read_text().splitlines()
        pairs = (line.split(" ")[0].split("==") for line in lines if "==" in line)
        return dict(pairs)


@pytest.fixture(scope="module")
def bento(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bento:
    """A bento of the repository's sources and the tiny model."""
    project, home = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("bentoml")
    for name in SOURCES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, project / name)
    (project / "models").mkdir()
    for path in (tiny_model, tiny_model.with_name(f"{tiny_model.name}.sha256")):
        shutil.copy(path, project / "models")
    environment = serve_environment(BENTOML_HOME=str(home))
    command = [BENTOML, "build", "--output", "tag"]
    built = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    name, version = built.stdout.split("__tag__:")[1].split()[0].split(":")
    return Bento(home / "bentos" / name / version, home)


@pytest.fixture(scope="module")
def bento_server(bento: Bento) -> Iterator[str]:
    """The bento, served by the command of its image, far from the repository."""
    port = free_port()
    environment = serve_environment(BENTOML_HOME=str(bento.home))
    process = subprocess.Popen([*serve_command(port), str(bento.folder)], cwd="/", env=environment)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def test_the_model_is_in_it_and_what_trains_is_not(bento: Bento, tiny_model: Path) -> None:
    source = bento.folder / "src"
    assert (source / "models" / "ensemble.onnx").read_bytes() == tiny_model.read_bytes()
    assert (source / "models" / "ensemble.onnx.sha256").is_file()
    assert (source / "serving" / "web" / "index.html").is_file()
    folders = {path.name for path in source.iterdir() if path.is_dir()}
    assert folders == {"serving", "tailstack", "models"}
    assert not {"torch", "timm", "torchvision", "albumentations", "onnx"} & set(bento.requirements())
    size = sum(path.stat().st_size for path in bento.folder.rglob("*") if path.is_file())
    assert size < tiny_model.stat().st_size + 500_000


def test_its_packages_are_those_that_were_tested(bento: Bento) -> None:
    locked = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    found = bento.requirements()
    assert {name: version for name, version in found.items() if locked.get(name, version) != version} == {}
    assert {"bentoml", "fastapi", "numpy", "pillow", "uvicorn", "uvloop"} <= set(found) & set(locked)
    assert "onnxruntime-gpu" in found


def test_its_image_runs_as_a_user_who_is_not_root(bento: Bento) -> None:
    dockerfile = (bento.folder / "env" / "docker" / "Dockerfile").read_text()
    assert f"BENTO_USER_UID={BENTO_USER}" in dockerfile
    users = re.findall(r"^USER (\w+)", dockerfile, re.MULTILINE)
    assert users[-1] == "bentoml"


def test_nothing_in_it_reports_its_use(bento: Bento) -> None:
    variables = yaml.safe_load((bento.folder / "bento.yaml").read_text())["envs"]
    found = {variable["name"]: variable["value"] for variable in variables}
    assert found == {"BENTOML_DO_NOT_TRACK": "True", "ORT_DISABLE_TELEMETRY": "1"}


def test_it_serves_its_own_model(bento_server: str) -> None:
    # The socket is open before the model is loaded.
    transport = httpx.HTTPTransport(retries=8)
    with httpx.Client(base_url=bento_server, transport=transport, timeout=START_LIMIT_S) as client:
        answer = client.post("/classify", files={"image": encoded()})
        assert answer.status_code == 200
        assert client.get("/").text.startswith("<!doctype html>")
        assert answer.json()["model"] == {key: client.get("/model").json()[key] for key in ("name", "version")}
