"""`POST /classify` on a running server: answers, and what a bad request gets."""

import io
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tailstack import datastore as datastores
from tailstack.artifact import INPUT, PROBABILITIES
from tailstack.datastore import Datastore
from tailstack.images import decode
from tailstack.session import open_session


@pytest.fixture(scope="module")
def store(tiny_datastore: Path) -> Datastore:
    return datastores.load(tiny_datastore)


def encoded(image_format: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, image_format, **options)
    return stream.getvalue()


def test_answers_are_those_of_the_file(server: str, store: Datastore, tiny_model: Path) -> None:
    session = open_session(tiny_model)
    for index in range(0, len(store.test), 7):
        data = store.test.read(index)
        answer = httpx.post(f"{server}/classify", files={"image": data}).json()
        (expected,) = session.run([PROBABILITIES], {INPUT: decode(data)[None]})
        best = [prediction["index"] for prediction in answer["predictions"]]
        assert best == np.argsort(-expected[0], kind="stable")[:5].tolist()
        np.testing.assert_allclose(
            [prediction["probability"] for prediction in answer["predictions"]], expected[0][best], atol=1e-5
        )
        assert [prediction["label"] for prediction in answer["predictions"]] == [store.classes[i] for i in best]


def test_form_and_raw_body_agree(server: str, store: Datastore) -> None:
    data = store.test.read(0)
    form = httpx.post(f"{server}/classify", files={"image": ("x.bin", data, "text/plain")}).json()
    raw = httpx.post(f"{server}/classify", content=data).json()
    assert form["predictions"] == raw["predictions"]
    assert form["request_id"] != raw["request_id"]
    assert len(form["learners"]) == 2


@pytest.mark.parametrize(("top_k", "expected"), [(1, 1), (3, 3), (1000, 6)])
def test_top_k_by_query_and_by_form(server: str, store: Datastore, top_k: int, expected: int) -> None:
    data = store.test.read(0)
    query = httpx.post(f"{server}/classify", params={"top_k": top_k}, content=data).json()
    form = httpx.post(f"{server}/classify", data={"top_k": str(top_k)}, files={"image": data}).json()
    assert len(query["predictions"]) == len(form["predictions"]) == expected


def test_the_callers_request_id_comes_back(server: str) -> None:
    response = httpx.post(f"{server}/classify", content=encoded("PNG"), headers={"x-request-id": "abc"})
    assert response.json()["request_id"] == response.headers["x-request-id"] == "abc"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_kind_of_image(server: str, image_format: str) -> None:
    response = httpx.post(f"{server}/classify", content=encoded(image_format))
    assert response.status_code == 200
    assert sum(p["probability"] for p in response.json()["predictions"]) <= 1 + 1e-5


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "no_image"),
        (b"hello", 415, "unsupported_image"),
        (encoded("JPEG")[:-300], 422, "broken_image"),
        (encoded("PNG")[:-300], 422, "broken_image"),
        (bytes(1_000_001), 413, "body_too_large"),
    ],
)
def test_a_bad_body_gets_a_reason(server: str, content: bytes, status: int, code: str) -> None:
    response = httpx.post(f"{server}/classify", content=content)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json()["error"]["message"]


def test_a_bad_image_in_a_form_gets_a_reason(server: str) -> None:
    empty = httpx.post(f"{server}/classify", files={"image": b""})
    assert (empty.status_code, empty.json()["error"]["code"]) == (422, "broken_image")
    other_field = httpx.post(f"{server}/classify", files={"picture": encoded("PNG")})
    assert (other_field.status_code, other_field.json()["error"]["code"]) == (400, "no_image")


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=x"])
def test_a_malformed_form_gets_a_reason(server: str, kind: str) -> None:
    response = httpx.post(f"{server}/classify", content=b"--y\r\nnonsense", headers={"content-type": kind})
    assert response.status_code == 400
    assert response.json()["error"]["code"] in {"malformed_multipart", "no_image"}


@pytest.mark.parametrize("top_k", ["0", "-1", "x", "1.5", "9" * 5000, ""])
def test_a_bad_top_k_gets_a_reason(server: str, top_k: str) -> None:
    response = httpx.post(f"{server}/classify", params={"top_k": top_k}, content=encoded("PNG"))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_top_k")


def test_a_body_of_unknown_length_is_limited_too(server: str) -> None:
    response = httpx.post(f"{server}/classify", content=(bytes(100_000) for _ in range(20)))
    assert response.status_code == 413


def test_model_says_what_is_served(server: str) -> None:
    model = httpx.get(f"{server}/model").json()
    assert model["execution_provider"] in {"CPUExecutionProvider", "CUDAExecutionProvider"}
    assert len(model["classes"]) == 6
    assert len(model["learners"]) == 2
    assert 0 <= model["accuracy"]["top1"] <= 1


def test_the_documentation_names_the_routes(server: str) -> None:
    paths = httpx.get(f"{server}/docs.json").json()["paths"]
    assert {"/classify", "/model"} <= set(paths)


def test_serving_imports_no_torch() -> None:
    code = "import sys, serving.routes; assert not {'torch', 'timm', 'albumentations'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
