"""`POST /classify/batch`: each image has its own result or its own error, and none spoils another."""

import base64
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serving.conftest import encoded, new_client, web

BAD = {
    "notes.txt": (b"hello", "unsupported_image"),
    "cut.jpg": (encoded("JPEG")[:-300], "broken_image"),
    "empty.png": (b"", "broken_image"),
}


def test_results_and_errors_stand_in_order(server: str) -> None:
    good = {f"{kind}.bin": encoded(kind) for kind in ("PNG", "JPEG", "WEBP")}
    mixed = [pair for pairs in zip(good.items(), BAD.items(), strict=True) for pair in pairs]
    files = [("images", (name, data if isinstance(data, bytes) else data[0])) for name, data in mixed]
    response = web.post(f"{server}/classify/batch", params={"top_k": 2}, files=files)
    assert response.status_code == 200
    for (name, data), result in zip(mixed, response.json()["results"], strict=True):
        if isinstance(data, bytes):
            alone = web.post(f"{server}/classify", params={"top_k": 2}, content=data).json()
            assert [p["label"] for p in result["predictions"]] == [p["label"] for p in alone["predictions"]]
            assert result["predictions"][0]["probability"] == pytest.approx(
                alone["predictions"][0]["probability"], abs=1e-5
            )
            assert len(result["learners"]) == 2
        else:
            assert result["error"]["code"] == data[1]
            assert name in result["error"]["message"]


def test_base64_in_json(server: str) -> None:
    images = [base64.b64encode(data).decode() for data in (encoded(), b"hello")]
    response = web.post(f"{server}/classify/batch", json={"images": images, "learners": False, "top_k": 1})
    first, second = response.json()["results"]
    assert len(first["predictions"]) == 1
    assert "learners" not in first
    assert second["error"]["code"] == "unsupported_image"


@pytest.mark.parametrize(("count", "status"), [(1, 200), (64, 200), (65, 400)])
def test_the_number_of_images_is_limited(server: str, count: int, status: int) -> None:
    files = [("images", encoded("JPEG"))] * count
    response = web.post(f"{server}/classify/batch", files=files)
    assert response.status_code == status
    if status == 200:
        assert len(response.json()["results"]) == count
    else:
        assert response.json()["error"]["code"] == "too_many_images"


def test_a_raw_body_is_one_image(server: str) -> None:
    results = web.post(f"{server}/classify/batch", content=encoded()).json()["results"]
    assert len(results) == 1


def test_requests_at_once_get_their_own_answers(server: str) -> None:
    images = [encoded(size=(20 + number, 20)) for number in range(16)]
    with new_client() as client:

        def ask(data: bytes) -> dict[str, float]:
            answer = client.post(f"{server}/classify", params={"top_k": 6}, content=data).json()
            return {p["label"]: p["probability"] for p in answer["predictions"]}

        alone = [ask(data) for data in images]
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(ask, images * 4))
    for number, answer in enumerate(together):
        assert answer == pytest.approx(alone[number % 16], abs=1e-5)
