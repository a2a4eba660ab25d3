"""The whole chain on real photos, as a user goes through it: prepare, fit, export, eval and the server agree."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from playwright.sync_api import expect, sync_playwright

from benchmarks.predictors import OnnxModel
from tailstack import datastore as datastores
from tailstack.artifact import INPUT, PROBABILITIES
from tailstack.datastore import Datastore
from tests.conftest import ROOT
from tests.serving.conftest import CHROMIUM, CHROMIUM_FLAGS, running

pytestmark = pytest.mark.photos
CLASSES = 10
ASKED = 200
CHANCE = 1 / CLASSES
FIT = [
    *("--technique", "stacking-wl", "--architectures", "[tf_efficientnet_lite0, tf_efficientnet_lite1]"),
    *("--resolution", "48", "--epochs", "2", "--batch_size", "32", "--num_workers", "0", "--augment", "light"),
]


def command(*words: object) -> str:
    line = [sys.executable, *map(str, words)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def store(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Datastore:
    """Ten classes, long-tailed."""
    folder = tmp_path_factory.mktemp("photos-datastore") / "ten"
    command("-m", "training", "prepare", photos, "--output", folder, "--classes", CLASSES, "--imbalance", 0.02)
    return datastores.load(folder.with_name("ten-imbalance-0.02"))


@pytest.fixture(scope="module")
def run(store: Datastore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos-run") / "run"
    command("-m", "training", "fit", "--datastore", store.path, "--output", folder, *FIT)
    return folder


@pytest.fixture(scope="module")
def model(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos-model") / "ensemble.onnx"
    command("-m", "export", run, "--output", path)
    return path


def test_the_variants_have_the_sizes_of_the_literature(photos: Path, tmp_path: Path) -> None:
    ratios = {0.1: 9_830, 0.02: 6_369, 0.005: 4_833}
    said = command("-m", "training", "prepare", photos, "--output", tmp_path / "all", "--imbalance", *ratios)
    assert "6 image(s) are exact copies of a test image" in said
    for ratio, images in ratios.items():
        store = datastores.load(tmp_path / f"all-imbalance-{ratio:g}")
        assert (len(store.train), len(store.test), len(store.classes)) == (images, 5_000, 50)


def test_pretrained_learners_learn(run: Path) -> None:
    fitted = json.loads((run / "ensemble.json").read_text())
    assert fitted["results"]["top1"] > 2 * CHANCE
    assert [learner["architecture"] for learner in fitted["learners"]] == [f"tf_efficientnet_lite{k}" for k in (0, 1)]


def test_eval_measures_what_fit_reported(model: Path, run: Path, store: Datastore, tmp_path: Path) -> None:
    settings = ["--rounds", "1", "--seconds", "0.01", "--output", tmp_path]
    command("benchmarks/eval.py", "--model", model, "--datastore", store.path, *settings)
    measured: dict[str, Any] = json.loads((tmp_path / "eval.json").read_text())
    fitted = json.loads((run / "ensemble.json").read_text())
    assert measured["accuracy"]["top1"] == pytest.approx(fitted["results"]["top1"], abs=1e-6)


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of that model."""
    with running(model, tmp_path_factory.mktemp("photos-server")) as server:
        yield server.address


@pytest.fixture(scope="module")
def photo(store: Datastore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    path.write_bytes(store.test.read(0))
    return path


@pytest.fixture(scope="module")
def probabilities(model: Path, store: Datastore) -> dict[str, float]:
    """What the file itself says of the photo."""
    file = OnnxModel.load(model, threads=1)
    row = file.predict(store.test.decode(0, file.artifact.image_size)[None])[0]
    return dict(zip(store.classes, row.tolist(), strict=True))


def test_the_server_gives_the_labels_of_the_file(model: Path, store: Datastore, server: str) -> None:
    indices = np.linspace(0, len(store.test) - 1, ASKED).astype(int)
    file = OnnxModel.load(model, threads=1)
    pixels = np.stack([store.test.decode(int(index), file.artifact.image_size) for index in indices])
    expected = [store.classes[label] for label in file.predict(pixels).argmax(axis=1)]
    with httpx.Client(base_url=server, timeout=60) as client:
        answers = [client.post("/classify", files={"image": store.test.read(int(index))}).json() for index in indices]
    assert [answer["predictions"][0]["label"] for answer in answers] == expected


def same(answer: dict[str, Any], probabilities: dict[str, float]) -> bool:
    """Whether an answer of `/classify` for every class is what the file says."""
    found = {prediction["label"]: prediction["probability"] for prediction in answer["predictions"]}
    return found == pytest.approx(probabilities, abs=1e-4)


def test_curl_classifies_a_photo(server: str, photo: Path, probabilities: dict[str, float]) -> None:
    line = ["curl", "-sS", "-F", f"image=@{photo}", f"{server}/classify?top_k={CLASSES}"]
    answer = json.loads(subprocess.run(line, capture_output=True, check=True).stdout)
    assert same(answer, probabilities)


def test_bentomls_client_classifies_a_photo(server: str, photo: Path, probabilities: dict[str, float]) -> None:
    with bentoml.SyncHTTPClient(server) as client:
        assert same(client.classify(image=photo, top_k=CLASSES), probabilities)


def test_tritons_client_classifies_a_photo(
    server: str, model: Path, store: Datastore, probabilities: dict[str, float]
) -> None:
    pixels = store.test.decode(0, OnnxModel.load(model, threads=1).artifact.image_size)[None]
    tensor = triton.InferInput(INPUT, list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    with triton.InferenceServerClient(server.removeprefix("http://")) as client:
        answer = client.infer("ensemble", [tensor])
    assert answer.as_numpy(PROBABILITIES)[0] == pytest.approx(list(probabilities.values()), abs=1e-4)


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"the browser is needed: install {CHROMIUM}")
def test_the_page_classifies_a_photo(server: str, photo: Path, probabilities: dict[str, float]) -> None:
    label, probability = max(probabilities.items(), key=lambda item: item[1])
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS).new_page()
        page.goto(server)
        page.get_by_label("Choose pictures").set_input_files(photo)
        best = page.get_by_role("list", name="Most probable classes").get_by_role("listitem").first
        expect(best).to_have_text(f"{label}{100 * probability:.1f} %", timeout=30_000)
