"""The Open Inference Protocol, spoken by Triton's own client, and bad requests in it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tailstack.artifact import INPUT, LEARNER_PROBABILITIES, PROBABILITIES
from tailstack.images import decode
from tailstack.session import open_session
from tests.serving.conftest import encoded, web

MODEL = "ensemble"


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.removeprefix("http://")) as client:
        yield client


@pytest.fixture(scope="module")
def pixels() -> npt.NDArray[np.uint8]:
    return np.stack([decode(encoded(size=(32 + number, 40)), (32, 32)) for number in range(3)])


def test_health_and_metadata(client: triton.InferenceServerClient, server: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    model = web.get(f"{server}/model").json()
    metadata = client.get_model_metadata(MODEL, model["version"])
    assert metadata == client.get_model_metadata(MODEL)
    assert (metadata["name"], metadata["versions"]) == (model["name"], [model["version"]])
    assert metadata["inputs"] == [{"name": INPUT, "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]
    assert [output["shape"] for output in metadata["outputs"]] == [[-1, 6], [-1, 2, 6]]
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, model["version"])
    assert not client.is_model_ready("another")
    assert not client.is_model_ready(MODEL, "another")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("versioned", [True, False])
def test_inference(
    client: triton.InferenceServerClient,
    pixels: npt.NDArray[np.uint8],
    tiny_model: Path,
    binary_in: bool,
    binary_out: bool,
    versioned: bool,
) -> None:
    tensor = triton.InferInput(INPUT, list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary_in)
    outputs = [
        triton.InferRequestedOutput(name, binary_data=binary_out) for name in (LEARNER_PROBABILITIES, PROBABILITIES)
    ]
    version = client.get_model_metadata(MODEL)["versions"][0]
    answer = client.infer(
        MODEL, [tensor], model_version=version if versioned else "", outputs=outputs, request_id="mine"
    )
    expected = open_session(tiny_model).run([PROBABILITIES, LEARNER_PROBABILITIES], {INPUT: pixels})
    np.testing.assert_allclose(answer.as_numpy(PROBABILITIES), expected[0], atol=1e-5)
    np.testing.assert_allclose(answer.as_numpy(LEARNER_PROBABILITIES), expected[1], atol=1e-5)
    head = answer.get_response()
    assert (head["id"], head["model_name"], head["model_version"]) == ("mine", MODEL, version)


def test_all_outputs_where_none_is_named(
    client: triton.InferenceServerClient, pixels: npt.NDArray[np.uint8], server: str
) -> None:
    tensor = triton.InferInput(INPUT, list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    answer = client.infer(MODEL, [tensor])
    nested = {"name": INPUT, "datatype": "UINT8", "shape": [3, 32, 32, 3], "data": pixels.tolist()}
    plain = web.post(f"{server}/v2/models/{MODEL}/infer", json={"inputs": [nested]}).json()
    for output in plain["outputs"]:
        np.testing.assert_allclose(
            np.reshape(output["data"], output["shape"]), answer.as_numpy(output["name"]), atol=1e-5
        )
    assert {output["name"] for output in plain["outputs"]} == {PROBABILITIES, LEARNER_PROBABILITIES}


def test_errors_are_as_the_client_expects_them(
    client: triton.InferenceServerClient, pixels: npt.NDArray[np.uint8]
) -> None:
    tensor = triton.InferInput(INPUT, [1, 16, 16, 3], "UINT8")
    tensor.set_data_from_numpy(pixels[:1, :16, :16])
    with pytest.raises(InferenceServerException, match="has to be 'images', UINT8"):
        client.infer(MODEL, [tensor])
    with pytest.raises(InferenceServerException, match="there is no model 'another'"):
        client.get_model_metadata("another")


TENSOR: dict[str, Any] = {"name": INPUT, "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}
BINARY = {**TENSOR, "data": None, "parameters": {"binary_data_size": 3072}}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": []},
        {"inputs": [TENSOR, TENSOR]},
        {"inputs": [{**TENSOR, "name": "other"}]},
        {"inputs": [{**TENSOR, "datatype": "FP32"}]},
        {"inputs": [{**TENSOR, "shape": [0, 32, 32, 3], "data": []}]},
        {"inputs": [{**TENSOR, "shape": [-1, 32, 32, 3]}]},
        {"inputs": [{**TENSOR, "shape": [65, 32, 32, 3]}]},
        {"inputs": [{**TENSOR, "shape": [1000000, 1000000, 1000000]}]},
        {"inputs": [{**TENSOR, "data": [0] * 3071}]},
        {"inputs": [{**TENSOR, "data": [256] + [0] * 3071}]},
        {"inputs": [{**TENSOR, "data": [-1] + [0] * 3071}]},
        {"inputs": [{**TENSOR, "data": [2**70] + [0] * 3071}]},
        {"inputs": [{**TENSOR, "data": [0.5] + [0] * 3071}]},
        {"inputs": [{**TENSOR, "data": ["x"] + [0] * 3071}]},
        {"inputs": [{**TENSOR, "data": [[0, 0], [0]]}]},
        {"inputs": [{**TENSOR, "data": [True] + [0] * 3071}]},
        {"inputs": [{**TENSOR, "data": [[[[0] * 96] * 32]]}]},
        {"inputs": [{**TENSOR, "data": [[0]] + [0] * 3071}]},
        {"inputs": [{**TENSOR, "data": None}]},
        {"inputs": [BINARY]},
        {"inputs": [TENSOR], "outputs": [{"name": "other"}]},
        {"inputs": [TENSOR], "outputs": [{"name": PROBABILITIES, "parameters": {"classification": 3}}]},
        {"inputs": [TENSOR], "parameters": [{}] * 2000},
    ],
)
def test_a_bad_request_gets_a_reason(server: str, body: dict[str, Any]) -> None:
    response = web.post(f"{server}/v2/models/{MODEL}/infer", json=body)
    assert response.status_code == 400
    assert isinstance(response.json()["error"], str)
    assert response.json()["error"]


@pytest.mark.parametrize("data", [["x" * 100_000, *["x"] * 100_000], [[]] * 280_000], ids=["texts", "lists"])
def test_values_that_would_fill_the_memory_are_refused_first(server: str, data: list[Any]) -> None:
    # As an array of texts of one length, the first would take 40 GB.
    response = web.post(f"{server}/v2/models/{MODEL}/infer", json={"inputs": [{**TENSOR, "data": data}]})
    assert response.status_code == 400


@pytest.mark.parametrize("length", ["x", "-1", "1e3", "9" * 5000, "100000", "10", "0"])
def test_a_wrong_header_length_gets_a_reason(server: str, length: str) -> None:
    body = json.dumps({"inputs": [BINARY]}).encode() + bytes(3072)
    headers = {"inference-header-content-length": length}
    response = web.post(f"{server}/v2/models/{MODEL}/infer", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]


@pytest.mark.parametrize("path", ["", "/versions/1", "/versions/1/ready", "/ready"])
def test_unknown_models_and_versions(server: str, path: str) -> None:
    name = MODEL if "versions" in path else "another"
    response = web.get(f"{server}/v2/models/{name}{path}")
    assert response.status_code == 404
    assert isinstance(response.json()["error"], str)
