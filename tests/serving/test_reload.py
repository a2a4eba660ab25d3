"""A new model file under running requests: swapped in without a failure, or refused while the old one goes on."""

import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import onnx
import pytest

from tailstack.signature import sign, signature_file
from tests.keys import key_pair
from tests.serving.conftest import ADMIN_KEY, Running, encoded, new_client, running, wait_for, web


class Folder:
    """Where the served file lies, and how it is replaced."""

    def __init__(self, model: Path, original: Path) -> None:
        self.model = model
        self.sidecar = model.with_name(f"{model.name}.sha256")
        self.original = original.read_bytes()

    def put(self, content: bytes, digest: str | None = None) -> None:
        """Replace the file, as `python -m export` does, and its sidecar."""
        new = self.model.with_name("new")
        new.write_bytes(content)
        new.replace(self.model)
        self.sidecar.write_text(f"{digest or hashlib.sha256(content).hexdigest()}  {self.model.name}\n")

    def changed(self, change: Callable[[onnx.ModelProto], None]) -> bytes:
        proto = onnx.load_from_string(self.original)
        change(proto)
        return proto.SerializeToString()

    def another(self, number: int) -> bytes:
        """A good model with another version."""
        return self.changed(lambda proto: setattr(proto, "doc_string", f"number {number}"))


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(tmp_path_factory.mktemp("reload") / "ensemble.onnx", tiny_model)
    folder.put(folder.original)
    return folder


@pytest.fixture(scope="module")
def reloading(folder: Folder) -> Iterator[Running]:
    variables = {"TAILSTACK_ADMIN_KEYS": ADMIN_KEY, "TAILSTACK_RELOAD_INTERVAL": "0.2"}
    with running(folder.model, folder.model.parent, **variables) as server:
        yield server


@pytest.fixture
def requests(reloading: Running) -> Iterator[set[str]]:
    """Versions that answered requests that ran all the while; not one may fail."""
    versions, failures, stop = set(), [], threading.Event()

    def work() -> None:
        with new_client() as client:
            while not stop.is_set():
                response = client.post(f"{reloading.address}/classify", content=encoded())
                if response.status_code != 200:
                    failures.append(response.text)
                    return
                versions.add(response.json()["model"]["version"])

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    yield versions
    stop.set()
    for worker in workers:
        worker.join()
    assert not failures


def version(server: Running) -> str:
    return str(web.get(f"{server.address}/model").json()["version"])


def ask(server: Running) -> httpx.Response:
    return web.post(f"{server.address}/model/reload", headers={"x-api-key": ADMIN_KEY})


def test_by_request_and_by_change_of_the_file(folder: Folder, reloading: Running, requests: set[str]) -> None:
    seen = [version(reloading)]
    wait_for(lambda: requests == set(seen))
    for number in range(4):
        content = folder.another(number)
        folder.put(content)
        seen.append(hashlib.sha256(content).hexdigest()[:12])
        if number % 2:
            assert ask(reloading).json()["model"]["version"] == seen[-1]
        wait_for(lambda: version(reloading) == seen[-1] and seen[-1] in requests)
    assert requests == set(seen)
    assert ask(reloading).json() == {"changed": False, "model": {"name": "ensemble", "version": seen[-1]}}


def foreign_operator(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].domain = "com.example"
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))


def external_data(proto: onnx.ModelProto) -> None:
    tensor = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": "0", "length": str(size)}.items():
        tensor.external_data.add(key=key, value=value)


def no_metadata(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]


def fewer_classes(proto: onnx.ModelProto) -> None:
    for entry in proto.metadata_props:
        if entry.key == "tailstack.classes":
            entry.value = '["one", "two"]'


def newer_format(proto: onnx.ModelProto) -> None:
    for entry in proto.metadata_props:
        if entry.key == "tailstack.format":
            entry.value = "99"


BROKEN: dict[str, tuple[Callable[[Folder], bytes], str]] = {
    "empty": (lambda folder: b"", "can't be loaded"),
    "noise": (lambda folder: bytes(range(256)) * 1000, "can't be loaded"),
    "cut short": (lambda folder: folder.original[:-1000], "can't be loaded"),
    "foreign operator": (lambda folder: folder.changed(foreign_operator), "operator that ONNX Runtime doesn't know"),
    "external data": (lambda folder: folder.changed(external_data), "has to be one file"),
    "no metadata": (lambda folder: folder.changed(no_metadata), "not a Tailstack model"),
    "fewer classes": (lambda folder: folder.changed(fewer_classes), "doesn't answer for the classes"),
    "newer format": (lambda folder: folder.changed(newer_format), "newer than"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_served_is_refused(folder: Folder, reloading: Running, requests: set[str], kind: str) -> None:
    make, says = BROKEN[kind]
    before = version(reloading)
    # A file that the model refers to must not be read even if it is there.
    (folder.model.parent / "weights.bin").write_bytes(bytes(10_000_000))
    folder.put(make(folder))
    response = ask(reloading)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "model_refused")
    assert says in response.json()["error"]["message"]
    assert "/" not in response.json()["error"]["message"].replace("function/op", "")
    wait_for(lambda: bool(requests))
    assert version(reloading) == before
    assert requests == {before}


def test_a_wrong_sidecar_is_refused(folder: Folder, reloading: Running) -> None:
    before = version(reloading)
    folder.put(folder.another(99), digest="0" * 64)
    response = ask(reloading)
    assert response.status_code == 409
    assert "is not the file that ensemble.onnx.sha256 describes" in response.json()["error"]["message"]
    assert version(reloading) == before


def test_a_missing_file_is_no_change(folder: Folder, reloading: Running) -> None:
    before = version(reloading)
    shutil.move(folder.model, folder.model.with_name("away"))
    assert ask(reloading).status_code == 409
    assert version(reloading) == before
    shown = re.findall(r'tailstack_model_info\{.*version="(.*)"\} 1.0', web.get(f"{reloading.address}/metrics").text)
    assert shown == [before]
    assert "model refused" in reloading.log.read_text()


def test_a_new_version_without_its_signature_waits_for_it(tiny_model: Path, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path)
    folder = Folder(tmp_path / "models" / "ensemble.onnx", tiny_model)
    folder.model.parent.mkdir()
    folder.put(folder.original)
    sign(folder.model, private)
    variables = {"TAILSTACK_PUBLIC_KEY": str(public), "TAILSTACK_RELOAD_INTERVAL": "0.2"}
    with running(folder.model, tmp_path, **variables) as server:
        first = version(server)
        content = folder.another(1)
        folder.put(content)
        log = tmp_path / "log"
        wait_for(lambda: "doesn't fit its signature" in log.read_text())
        assert version(server) == first
        signature_file(folder.model).unlink()
        sign(folder.model, private)
        wait_for(lambda: version(server) == hashlib.sha256(content).hexdigest()[:12])
