"""What the server tells: logs, figures, traces, request ids, security headers, and nothing about itself in errors."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.serving.conftest import ROOT, Running, encoded, new_client, running, web


def figures(address: str) -> dict[str, float]:
    """Samples by name and labels, without those of the Python process itself."""
    lines = web.get(f"{address}/metrics").text.splitlines()
    samples = [line.rpartition(" ") for line in lines if line.startswith("tailstack_")]
    return {name: float(value) for name, _, value in samples}


def test_every_line_of_the_log_is_json(serving: Running) -> None:
    response = web.post(f"{serving.address}/classify", content=encoded(), headers={"x-request-id": "for-the-log"})
    assert response.status_code == 200
    web.get(f"{serving.address}/none", params={"key": "secret"})
    # libtiff has a way of its own to complain.
    fax = bytearray(encoded("TIFF", compression="tiff_adobe_deflate"))
    fax[100:120] = bytes(20)
    assert web.post(f"{serving.address}/classify", content=bytes(fax)).status_code == 422
    lines = [json.loads(line) for line in serving.log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    (own,) = [line for line in lines if line.get("request_id") == "for-the-log"]
    assert (own["route"], own["status"], own["client"]) == ("/classify", 200, "127.0.0.1")
    assert own["milliseconds"] > 0
    assert "secret" not in serving.log.read_text()
    # Health and figures are asked for all day long.
    assert not [line for line in lines if line.get("route") in {"/readyz", "/metrics"}]


def test_a_server_that_logs_errors_alone(tiny_model: Path, tmp_path: Path) -> None:
    with running(tiny_model, tmp_path, TAILSTACK_REQUEST_LOG="errors") as server:
        assert web.post(f"{server.address}/classify", content=encoded()).status_code == 200
        assert web.get(f"{server.address}/none").status_code == 404
        counted = figures(server.address)
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert [line["status"] for line in lines if "status" in line] == [404]
    assert counted['tailstack_requests_total{method="POST",route="/classify",status="200"}'] == 1


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", 'quo"te', "newline\\n", "ümlaut"])
def test_an_odd_request_id_is_replaced(server: str, given: str) -> None:
    headers = {"x-request-id": given.encode()}
    response = web.post(f"{server}/classify", content=encoded(), headers=headers)
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
    assert response.json()["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/none"), ("POST", "/classify"), ("GET", "/v2")])
def test_every_answer_has_an_id_and_security_headers(server: str, method: str, path: str) -> None:
    response = web.request(method, f"{server}{path}")
    assert response.headers["x-request-id"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert "server" not in response.headers
    if path == "/":
        assert "default-src 'none'" in response.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/readyz", "/model", "/v2/health/ready", "/static/app.js"])
def test_head_is_answered_where_get_is(server: str, path: str) -> None:
    whole, head = web.get(f"{server}{path}"), web.request("HEAD", f"{server}{path}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    assert head.headers["content-type"] == whole.headers["content-type"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/none", 404), ("DELETE", "/classify", 405), ("GET", "/static/../app.py", 404), ("GET", "/model/", 404)],
)
def test_errors_of_routing_are_json_too(server: str, method: str, path: str, status: int) -> None:
    response = web.request(method, f"{server}{path}")
    assert response.status_code == status
    assert set(response.json()["error"]) == {"code", "message"}
    if status == 405:
        assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("ranges", ["x", "bytes=0-1", "bytes=9999999-"])
def test_no_range_is_taken(server: str, ranges: str) -> None:
    for path in ("/", "/static/app.js"):
        assert web.get(f"{server}{path}", headers={"range": ranges}).content == web.get(f"{server}{path}").content


def test_no_error_tells_where_the_server_lives(server: str) -> None:
    bodies = [b"", b"hello", encoded("TIFF")[:-300], encoded("JPEG")[:200], encoded("WEBP")[:50], b"BM" + bytes(100)]
    for body in bodies:
        text = web.post(f"{server}/classify", content=body).text
        assert not any(word in text for word in (str(ROOT), "site-packages", "Traceback", ".py", "0x7f"))


def test_figures_count_what_happens(server: str) -> None:
    before = figures(server)
    for body in (encoded(), encoded("JPEG"), b"hello"):
        web.post(f"{server}/classify", content=body)
    web.post(f"{server}/classify/batch", files=[("images", encoded())] * 5)
    after = figures(server)

    def grew(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert grew('tailstack_requests_total{method="POST",route="/classify",status="200"}') == 2
    assert grew('tailstack_requests_total{method="POST",route="/classify",status="415"}') == 1
    assert grew('tailstack_requests_total{method="POST",route="/classify/batch",status="200"}') == 1
    assert grew('tailstack_request_seconds_count{route="/classify"}') == 3
    assert grew("tailstack_decode_seconds_count") == 8
    assert grew("tailstack_queue_seconds_count") == grew("tailstack_confidence_count") == 7
    assert grew("tailstack_batch_size_sum") == 7
    assert 3 <= grew("tailstack_inference_seconds_count") <= 7
    assert sum(grew(name) for name in after if name.startswith("tailstack_predictions_total")) == 7
    assert after["tailstack_queue_images"] == 0
    assert after["tailstack_queue_capacity_images"] == 128
    assert [name for name in after if name.startswith("tailstack_model_info")]


def test_no_client_adds_series(server: str) -> None:
    def labels() -> set[str]:
        return {name.partition("{")[2] for name in figures(server)}

    with new_client(base_url=server) as client:
        client.get("/none")
        client.request("LOCK", "/none")
        before = labels()
        for number in range(50):
            client.get(f"/none/{number}")
            client.get(f"/v2/models/{number}")
            client.get(f"/static/{number}")
        for method in ("PATCH", "PROPFIND", "LOCK"):
            client.request(method, "/none")
    new = labels() - before
    assert new <= {
        'method="GET",route="/v2/models/{name}",status="404"}',
        *(name for name in new if name.startswith(('route="/v2/models/{name}"', 'le="'))),
    }


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An OTLP collector: its address and what it got."""
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", got
    server.shutdown()
    thread.join()


def test_traces_go_where_they_are_wanted(tiny_model: Path, tmp_path: Path, collector: tuple[str, list[bytes]]) -> None:
    endpoint, got = collector
    parent = "0af7651916cd43dd8448eb211c80319c"
    with running(tiny_model, tmp_path, TAILSTACK_OTLP_ENDPOINT=endpoint) as server:
        headers: dict[str, str | bytes] = {"traceparent": f"00-{parent}-b7ad6b7169203331-01"}
        for odd in (b"curl", b"\xff\\x"):
            headers["user-agent"] = headers["x-request-id"] = odd
            # OpenTelemetry's layer fails on the second.
            assert web.post(f"{server.address}/classify", content=encoded(), headers=headers).status_code == 200
    # What was not sent yet is sent at the end.
    spans = [
        span
        for body in got
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert {span.trace_id.hex() for span in spans if "/classify" in span.name or "POST" in span.name} == {parent}
    assert not [span for span in spans if "readyz" in span.name]
