"""`/docs.json` is complete and true: generated requests get documented answers, and every route of the app is in it."""

import json
from functools import cache
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.conftest import encoded, web

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
OPERATIONS = {
    "POST /classify",
    "POST /classify/batch",
    "GET /model",
    "POST /model/reload",
    "GET /livez",
    "GET /readyz",
    "GET /metrics",
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2/models/{name}",
    "GET /v2/models/{name}/ready",
    "POST /v2/models/{name}/infer",
    "GET /v2/models/{name}/versions/{version}",
    "GET /v2/models/{name}/versions/{version}/ready",
    "POST /v2/models/{name}/versions/{version}/infer",
}


@cache
def document(server: str) -> Any:
    return schemathesis.openapi.from_url(f"{server}/docs.json")


def test_every_route_is_in_it(server: str) -> None:
    assert {operation.ok().label for operation in document(server).get_all_operations()} == OPERATIONS


def test_every_route_says_that_it_can_fail_and_takes_an_id(server: str) -> None:
    for operations in web.get(f"{server}/docs.json").json()["paths"].values():
        for operation in operations.values():
            assert "500" in operation["responses"]
            assert "x-request-id" in {parameter["name"] for parameter in operation["parameters"]}


@pytest.mark.parametrize("label", sorted(OPERATIONS))
def test_generated_requests_get_documented_answers(server: str, label: str) -> None:
    method, path = label.split()
    operation = document(server)[path][method]

    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    check()


TENSOR = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/classify", {"content": encoded(), "headers": {"content-type": "application/octet-stream"}}),
    ("/classify", {"files": {"image": encoded()}, "params": {"learners": "false"}}),
    ("/classify/batch", {"files": [("images", encoded()), ("images", b"hello")]}),
    ("/v2/models/{name}/infer", {"json": {"inputs": [TENSOR], "id": "1"}}),
    ("/v2/models/{name}/infer", {"json": {"inputs": [TENSOR], "parameters": {"binary_data_output": True}}}),
]


@pytest.mark.parametrize(("path", "options"), GOOD)
def test_good_answers_are_as_documented(server: str, path: str, options: dict[str, Any]) -> None:
    response = web.post(server + path.format(name="ensemble"), **options)
    assert response.status_code == 200
    response.request.read()
    document(server)[path]["POST"].validate_response(response)


def test_no_answer_has_a_field_that_is_not_documented(server: str) -> None:
    schemas = web.get(f"{server}/docs.json").json()["components"]["schemas"]
    answer = web.post(f"{server}/classify", params={"coverage": 0.9}, content=encoded()).json()
    assert set(answer) == set(schemas["Classification"]["properties"])
    model = web.get(f"{server}/model").json()
    assert set(model) == set(schemas["ModelDescription"]["properties"])
    assert "HTTPValidationError" not in json.dumps(schemas)
