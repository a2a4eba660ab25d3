"""`POST /classify` on a running server: answers, and what a bad request gets."""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bentoml
import numpy as np
import pytest
from PIL import Image

from tailstack import datastore as datastores
from tailstack.artifact import INPUT, PROBABILITIES
from tailstack.datastore import Datastore
from tailstack.images import decode
from tailstack.session import open_session, runtime_version
from tests.serving.conftest import encoded, saved, web


@pytest.fixture(scope="module")
def store(tiny_datastore: Path) -> Datastore:
    return datastores.load(tiny_datastore)


def test_answers_are_those_of_the_file(server: str, store: Datastore, tiny_model: Path) -> None:
    session = open_session(tiny_model)
    for index in range(0, len(store.test), 7):
        data = store.test.read(index)
        answer = web.post(f"{server}/classify", files={"image": data}).json()
        (expected,) = session.run([PROBABILITIES], {INPUT: decode(data)[None]})
        best = [prediction["index"] for prediction in answer["predictions"]]
        assert best == np.argsort(-expected[0], kind="stable")[:5].tolist()
        np.testing.assert_allclose(
            [prediction["probability"] for prediction in answer["predictions"]], expected[0][best], atol=1e-5
        )
        assert [prediction["label"] for prediction in answer["predictions"]] == [store.classes[i] for i in best]


def test_form_and_raw_body_agree(server: str, store: Datastore) -> None:
    data = store.test.read(0)
    form = web.post(f"{server}/classify", files={"image": ("x.bin", data, "text/plain")}).json()
    raw = web.post(f"{server}/classify", content=data).json()
    assert form["predictions"] == raw["predictions"]
    assert form["request_id"] != raw["request_id"]
    assert len(form["learners"]) == 2


@pytest.mark.parametrize(("top_k", "expected"), [(1, 1), (3, 3), (1000, 6)])
def test_top_k_by_query_and_by_form(server: str, store: Datastore, top_k: int, expected: int) -> None:
    data = store.test.read(0)
    query = web.post(f"{server}/classify", params={"top_k": top_k}, content=data).json()
    form = web.post(f"{server}/classify", data={"top_k": str(top_k)}, files={"image": data}).json()
    assert len(query["predictions"]) == len(form["predictions"]) == expected


def test_the_callers_request_id_comes_back(server: str) -> None:
    response = web.post(f"{server}/classify", content=encoded("PNG"), headers={"x-request-id": "abc"})
    assert response.json()["request_id"] == response.headers["x-request-id"] == "abc"


def test_options(server: str, store: Datastore) -> None:
    data = store.test.read(0)
    full = web.post(f"{server}/classify", params={"top_k": 6}, content=data).json()
    second = full["predictions"][1]["probability"]
    some = web.post(f"{server}/classify", params={"min_probability": second, "learners": "false"}, content=data).json()
    assert some["predictions"] == full["predictions"][:2]
    assert "learners" not in some
    for vote in full["learners"]:
        assert vote["agrees"] == (vote["label"] == full["predictions"][0]["label"])


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_base64_in_json(server: str, store: Datastore, prefix: str) -> None:
    data = store.test.read(0)
    image = prefix + base64.b64encode(data).decode()
    answer = web.post(f"{server}/classify", json={"image": image, "top_k": 2, "learners": False}).json()
    raw = web.post(f"{server}/classify", params={"top_k": 2}, content=data).json()
    assert answer["predictions"] == raw["predictions"]
    assert "learners" not in answer


def test_curl(server: str, store: Datastore, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(store.test.read(0))
    expected = web.post(f"{server}/classify", content=photo.read_bytes()).json()["predictions"]
    for arguments in (["-F", f"image=@{photo}"], ["--data-binary", f"@{photo}"], ["-T", str(photo), "-X", "POST"]):
        command = ["curl", "-sS", *arguments, f"{server}/classify"]
        answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        assert answer["predictions"] == expected


def test_bentomls_client(server: str, store: Datastore, tmp_path: Path) -> None:
    photos = [tmp_path / f"{number}.png" for number in range(3)]
    for number, photo in enumerate(photos):
        photo.write_bytes(store.test.read(number))
    with bentoml.SyncHTTPClient(server) as client:
        assert client.is_ready()
        one = client.classify(image=photos[0], top_k=2)
        several = client.classify_batch(images=photos, top_k=2, learners=False)
    assert len(one["predictions"]) == 2
    assert [len(result["predictions"]) for result in several["results"]] == [2, 2, 2]
    assert several["results"][0]["predictions"] == one["predictions"]


def kinds() -> dict[str, bytes]:
    photo = Image.open(io.BytesIO(encoded()))
    alpha = photo.convert("RGBA")
    alpha.putalpha(100)
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    return {
        **{image_format: encoded(image_format) for image_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")},
        "progressive": encoded("JPEG", progressive=True),
        "EXIF": saved(photo, "JPEG", exif=turned),
        "palette": saved(photo.quantize(16)),
        "transparent palette": saved(photo.quantize(16), transparency=0),
        "alpha": saved(alpha),
        "gray": saved(photo.convert("L")),
        "gray and alpha": saved(alpha.convert("LA")),
        "black and white": saved(photo.convert("1")),
        "CMYK": saved(photo.convert("CMYK"), "JPEG"),
        "16 bit": saved(deep),
        "animation": saved(photo, "GIF", save_all=True, append_images=[photo.convert("L")]),
    }


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_image(server: str, kind: str, tiny_model: Path) -> None:
    data = kinds()[kind]
    response = web.post(f"{server}/classify", params={"top_k": 6}, files={"image": ("no.name", data, "text/plain")})
    assert response.status_code == 200
    (expected,) = open_session(tiny_model).run([PROBABILITIES], {INPUT: decode(data, (32, 32))[None]})
    given = {prediction["index"]: prediction["probability"] for prediction in response.json()["predictions"]}
    np.testing.assert_allclose([given[index] for index in range(6)], expected[0], atol=1e-5)


def scans(count: int) -> bytes:
    """A JPEG of few bytes that takes `count` passes over its pixels."""
    data = saved(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xc4")
    return data[:-2] + data[last:-2] * count + data[-2:]


GIF_FRAME = b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;"
BOMBS: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "pixels of a PNG": (lambda: saved(Image.new("1", (10_000, 10_000))), 413, "image_too_large"),
    "pixels of a WebP": (lambda: saved(Image.new("L", (8_000, 8_000)), "WEBP", method=0), 413, "image_too_large"),
    "a GIF's frame": (lambda: GIF_FRAME, 413, "image_too_large"),
    "scans of a JPEG": (lambda: scans(3000), 422, "broken_image"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_with_its_name(server: str, bomb: str) -> None:
    make, status, code = BOMBS[bomb]
    response = web.post(f"{server}/classify", files={"image": ("bomb.png", make())})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json()["error"]["message"].startswith("bomb.png: ")


def test_more_scans_than_usual_are_no_bomb(server: str) -> None:
    assert web.post(f"{server}/classify", content=scans(20)).status_code == 200


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
    response = web.post(f"{server}/classify", content=content)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json()["error"]["message"]


def test_a_bad_image_in_a_form_gets_a_reason(server: str) -> None:
    empty = web.post(f"{server}/classify", files={"image": b""})
    assert (empty.status_code, empty.json()["error"]["code"]) == (422, "broken_image")
    other_field = web.post(f"{server}/classify", files={"picture": encoded("PNG")})
    assert (other_field.status_code, other_field.json()["error"]["code"]) == (400, "no_image")


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        f"multipart/form-data; boundary*{'9' * 5000}=x",
        "multipart/form-data; boundary*=hex''x",
    ],
)
def test_a_malformed_form_gets_a_reason(server: str, kind: str) -> None:
    response = web.post(f"{server}/classify", content=b"--y\r\nnonsense", headers={"content-type": kind})
    assert response.status_code == 400
    assert response.json()["error"]["code"] in {"malformed_multipart", "no_image"}


def form(*parts: tuple[str, bytes]) -> bytes:
    lines = [
        b'--x\r\ncontent-disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), data)
        for name, data in parts
    ]
    return b"".join(lines) + b"--x--\r\n"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (form(("image", b""))[:-10], "malformed_multipart"),
        (form(*[("image", encoded())] * 2), "too_many_images"),
        (form(*[("other", b"")] * 1000), "malformed_multipart"),
    ],
)
def test_a_form_that_is_not_for_one_image(server: str, body: bytes, code: str) -> None:
    response = web.post(f"{server}/classify", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "malformed_json"),
        (b"[]", "malformed_json"),
        (b'{"image": 1}', "malformed_json"),
        (b'{"image": "http://127.0.0.1/x.png"}', "malformed_base64"),
        (b"[" * 9_000, "malformed_json"),
        (b'{"image": "", "x": [' + b"{}," * 50_000 + b"{}]}", "malformed_json"),
        (b'{"images": ""}', "no_image"),
        (b'{"image": ["", ""]}', "too_many_images"),
        (b'{"image": "AAAA", "top_k": true}', "bad_top_k"),
        (b'{"image": "AAAA"}', "unsupported_image"),
    ],
)
def test_bad_json_gets_a_reason(server: str, body: bytes, code: str) -> None:
    response = web.post(f"{server}/classify", content=body, headers={"content-type": "application/json"})
    assert response.json()["error"]["code"] == code
    assert 400 <= response.status_code < 500


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("top_k", ["0", "-1", "x", "1.5", "9" * 5000, "", "\u0663"]),
        ("min_probability", ["-0.1", "1.1", "nan", "inf", "x", ""]),
        ("learners", ["yes", "2", ""]),
    ],
)
def test_a_bad_option_gets_a_reason(server: str, name: str, values: list[str]) -> None:
    for value in values:
        response = web.post(f"{server}/classify", params={name: value}, content=encoded("PNG"))
        assert (response.status_code, response.json()["error"]["code"]) == (400, f"bad_{name}"), value


def test_compressed_bodies_are_refused(server: str) -> None:
    response = web.post(f"{server}/classify", content=encoded(), headers={"content-encoding": "gzip"})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_encoding")


def test_a_body_of_unknown_length_is_limited_too(server: str) -> None:
    response = web.post(f"{server}/classify", content=(bytes(100_000) for _ in range(20)))
    assert response.status_code == 413


def test_model_says_what_is_served(server: str) -> None:
    model = web.get(f"{server}/model").json()
    assert model["runtime"] == runtime_version()
    assert model["execution_provider"] in {"CPUExecutionProvider", "CUDAExecutionProvider"}
    assert len(model["classes"]) == 6
    assert len(model["learners"]) == 2
    assert 0 <= model["accuracy"]["top1"] <= 1


def test_serving_imports_no_torch() -> None:
    code = "import sys, serving.routes; assert not {'torch', 'timm', 'albumentations'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
