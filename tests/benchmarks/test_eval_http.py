"""`benchmarks/eval.py --url` on the tiny model's real server: what its file gives, its load, and what is refused."""

import itertools
import json
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import evaluation_http
from benchmarks.evaluation import run_evaluation
from benchmarks.evaluation_contract import EvalSettings, Evaluation
from benchmarks.evaluation_figures import draw_figures
from benchmarks.evaluation_http import Course, Turn, evaluate_server
from benchmarks.evaluation_report import markdown
from benchmarks.gates import broken_limits
from benchmarks.http_load import Load, form, run_load
from benchmarks.listening import find_server
from benchmarks.remote import Remote
from benchmarks.wrk import Closed, as_measured, run_wrk, turn_seconds
from tailstack import datastore as datastores
from tailstack.errors import UserError
from tests.benchmarks.test_eval import FIGURES, command, variant
from tests.conftest import CLASSES
from tests.serving.conftest import Running, free_port, running

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk makes the load: apt-get install wrk")
KEY = "open sesame"
CONCURRENCIES, SHARES = (1, 4), (0.5,)


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that asks for a key."""
    with running(tiny_model, tmp_path_factory.mktemp("server"), TAILSTACK_API_KEYS=KEY) as started:
        yield started


@pytest.fixture(scope="module")
def measured(server: Running, tiny_datastore: Path) -> Evaluation:
    settings = EvalSettings(tiny_datastore, url=f"{server.address}/", key=KEY, rounds=1, seconds=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_http, "CONCURRENCIES", CONCURRENCIES)
        patch.setattr(evaluation_http, "SHARES", SHARES)
        return run_evaluation(settings)


@needs_wrk
def test_http_and_file_give_the_same_answers(measured: Evaluation, tiny_model: Path, tiny_datastore: Path) -> None:
    by_file = run_evaluation(EvalSettings(tiny_datastore, tiny_model, threads=1, rounds=1, seconds=0))
    assert (measured.probabilities.argmax(axis=1) == by_file.probabilities.argmax(axis=1)).all()
    np.testing.assert_allclose(measured.probabilities, by_file.probabilities, atol=1e-5)
    over_http, of_file = measured.report["accuracy"], by_file.report["accuracy"]
    assert over_http["per_class"] == of_file["per_class"]
    for name in ("top1", "top5", "balanced", "macro_f1", "many", "medium", "few", "ece", "nll"):
        assert over_http[name] == pytest.approx(of_file[name], abs=1e-5), name
    assert measured.report["prediction_sets"] == by_file.report["prediction_sets"] != {}


@needs_wrk
def test_the_load_is_measured(measured: Evaluation) -> None:
    report = measured.report
    assert set(report["latency_ms"]) == set(report["throughput"]) == {str(number) for number in CONCURRENCIES}
    http = report["http"]
    assert http["server_seen"] is True
    assert [part["rate"] for part in http["open"]] == [SHARES[0] * max(report["throughput"].values())]
    for latency in [*report["latency_ms"].values(), *(part["latency_ms"] for part in http["open"])]:
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
    for part in [*http["closed"].values(), *http["open"]]:
        assert part["server_cpu_ms"] > 0
        assert 0 < part["load_cores"] <= 1.1
        assert not part["failed"]
    (times,) = measured.latencies_ms.values()
    assert np.percentile(times, 99) == http["open"][0]["latency_ms"]["p99"]
    assert json.loads(json.dumps(report)) == report
    assert KEY not in json.dumps(report)


@pytest.mark.parametrize(
    ("concurrency", "rate", "seconds"),
    # Eight answers a connection, sixteen batches, and a minute at most.
    [(1, 300.0, 1.0), (1, 8.0, 2.0), (8, 64.0, 2.0), (64, 256.0, 2.0), (64, 16.0, 32.0), (64, 1.0, 60.0)],
)
def test_a_turn_is_long_enough_for_a_slow_server(concurrency: int, rate: float, seconds: float) -> None:
    assert turn_seconds(1.0, concurrency, rate) == seconds
    assert turn_seconds(100.0, concurrency, rate) == 100.0


def test_wrk_waits_for_each_answer_as_long_as_the_turn_is(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "no")

    monkeypatch.setattr("benchmarks.wrk.shutil.which", lambda _: "wrk")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match="wrk failed with status 1: no"):
        run_wrk("http://localhost", [form(b"photo")], 256, 45.5)
    assert " --duration 46s --timeout 47s " in " ".join(commands[0])


@needs_wrk
def test_the_page_shows_the_figures_of_the_report(measured: Evaluation) -> None:
    page, report = markdown(measured.report), measured.report
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    closed = {row[0]: row[1] for row in rows if len(row) == 8 and row[0] in report["throughput"]}
    assert closed == {name: f"{rate:.1f}" for name, rate in report["throughput"].items()}
    assert ["HTTP", f"{report['accuracy']['top1']:.4f}"] in [row[:2] for row in rows]
    assert report["model"]["url"] in page
    hidden = {**report, "http": {**report["http"], "server_seen": False}}
    assert "processor time is left out" in markdown(hidden)
    assert "processor time is left out" not in page


@needs_wrk
def test_the_figures_are_drawn(measured: Evaluation, tmp_path: Path) -> None:
    shown = draw_figures(measured, tmp_path)
    assert {figure.file for figure in shown} == {path.name for path in tmp_path.iterdir()}
    assert sorted(figure.file for figure in shown) == [f"eval-{name}.png" for name in FIGURES]
    assert "Left: so many requests are under way" in markdown(measured.report, shown)


@pytest.mark.parametrize(("key", "says"), [("", "asks for a key: give one with --key"), ("no", "refuses the key")])
def test_a_missing_and_a_wrong_key_are_named(server: Running, key: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Remote.parse(server.address, key).describe()


@needs_wrk
def test_the_key_comes_from_the_environment(
    server: Running, tiny_datastore: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TAILSTACK_API_KEY", KEY)
    other = variant(tiny_datastore, tmp_path, classes=[*CLASSES[:4], "oval", "ring"])
    with pytest.raises(UserError, match="other classes than the model: class 4 is 'oval' instead of 'gradient'"):
        evaluate_server(EvalSettings(other, url=server.address))


def test_a_refused_image_is_named(server: Running, tiny_datastore: Path) -> None:
    remote = Remote.parse(server.address, KEY)
    test = datastores.load(tiny_datastore).test
    broken = datastores.Split(test.root.parent, ["test.json"], test.labels[:1])
    with pytest.raises(UserError, match=r"test\.json \(annotation 0\): .* answers 415: .*not an image"):
        list(evaluation_http._ask(remote, remote.describe(), broken))


class _Stranger(BaseHTTPRequestHandler):
    """A server of something else."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/model" else 404)
        self.end_headers()
        self.wfile.write(b'{"name": "bert"}')

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def stranger() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), _Stranger) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield listener.server_port
        listener.shutdown()
        thread.join()


@pytest.mark.parametrize(("path", "says"), [("", "doesn't describe a model"), ("/elsewhere", "answered with 404")])
def test_another_server_is_refused(stranger: int, path: str, says: str) -> None:
    with pytest.raises(UserError, match=f"is no Tailstack server: .*{says}"):
        Remote.parse(f"http://127.0.0.1:{stranger}{path}").describe()


class _Staller(BaseHTTPRequestHandler):
    """A server that answers now and then late, or with an error: what it does next is the first of `plan`."""

    protocol_version = "HTTP/1.1"
    plan: Iterator[tuple[int, float]]
    """Status, and seconds before it."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        status, seconds = next(self.plan)
        time.sleep(seconds)
        self.wfile.write(f"HTTP/1.1 {status} -\r\ncontent-length: 0\r\n\r\n".encode())

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@contextmanager
def staller(plan: Iterator[tuple[int, float]]) -> Iterator[str]:
    """Run a server of its own plan, and yield its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), type("_Planned", (_Staller,), {"plan": plan})) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.server_port}"
        finally:
            listener.shutdown()
            thread.join()


def test_one_at_a_time_the_answer_that_a_turns_end_finds_under_way_counts() -> None:
    # The first request settles the server, and the second one outlasts the turn.
    with staller(itertools.chain([(200, 0.0), (200, 1.5)], itertools.repeat((200, 0.0)))) as url:
        turn = Course(Remote.parse(url), [b"photo"], None).closed(1, 1.0)
    assert (len(turn.closed.milliseconds), turn.closed.failures) == (1, 0)
    assert turn.closed.milliseconds[0] >= 1500


def test_one_at_a_time_an_error_is_no_fast_answer() -> None:
    with staller(itertools.cycle([(200, 0.0), (503, 0.0)])) as url:
        turn = Course(Remote.parse(url), [b"photo"], None).closed(1, 0.1)
    answers = len(turn.closed.milliseconds)
    assert answers > 0
    assert abs(turn.closed.failures - answers) <= 1
    figures = evaluation_http._closed_figures([turn, turn])
    assert figures["load"]["failed"] == 2 * turn.closed.failures


def test_percentiles_are_those_of_all_rounds() -> None:
    quick, stalled = (Turn(Closed(100.0, np.array(ms), 0, 1.0, 0.1), None) for ms in ([10.0] * 97, [10.0] * 2 + [3e3]))
    latency = evaluation_http._closed_figures([quick, quick, stalled, stalled])["latency_ms"]
    assert latency["p50"] == 10
    assert latency["p99"] == np.percentile([10.0] * 198 + [3e3] * 2, 99) > 10


def test_the_servers_processes_are_found_and_no_others(server: Running, stranger: int) -> None:
    found = find_server("localhost", server.port)
    assert found is not None
    assert found.process.pid == server.process.pid
    assert find_server("127.0.0.1", stranger) is None
    assert find_server("192.0.2.1", server.port) is None


def test_a_load_sends_the_pictures_of_a_folder_in_turn(server: Running, tiny_datastore: Path, tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(datastores.load(tiny_datastore).test.read(0))
    (tmp_path / "1").write_bytes(b"no picture")
    report = run_load(Load(server.port, str(tmp_path), requests=10, host="localhost", key=KEY))
    assert (len(report.answers), report.failed()) == (5, {"415": 5})


@needs_wrk
def test_wrk_sends_bodies_in_turn(server: Running, tiny_datastore: Path) -> None:
    bodies = [form(datastores.load(tiny_datastore).test.read(0)), form(b"no picture")]
    closed = run_wrk(f"{server.address}/classify", bodies, 1, 1, key=KEY)
    assert closed.failures == pytest.approx(closed.images_per_second * closed.seconds, abs=1.1)
    without = run_wrk(f"{server.address}/classify", bodies[:1], 1, 1)
    assert without.images_per_second == 0
    with pytest.raises(UserError, match="answered no request at concurrency 1"):
        Course(Remote.parse(server.address), [b"no picture"], None).closed(1, 1)


def test_what_wrk_adds_to_its_latencies_is_taken_out() -> None:
    def corrected(latencies: list[int], interval: int) -> Counter[int]:
        """Count as wrk's `stats_correct` does."""
        counts = Counter(latencies)
        for taken in range(2 * interval, max(counts) + 1):
            for late in range(taken - interval, interval, -interval):
                counts[late] += counts[taken]
        return +counts

    drawn = np.random.default_rng(0).exponential(40, 500).astype(int).tolist()
    for interval in (1, 7, 40, 90, 1000):
        found = as_measured(corrected(drawn, interval), interval)
        assert +Counter(found) == Counter(drawn)


@needs_wrk
def test_wrk_counts_each_answer_once() -> None:
    with staller(itertools.cycle([*[(200, 0.0)] * 9, (200, 0.3)])) as url:
        closed = run_wrk(f"{url}/classify", [form(b"photo")], 2, 2)
    assert closed.milliseconds.max() >= 300
    assert len(closed.milliseconds) == pytest.approx(closed.images_per_second * closed.seconds)


@needs_wrk
def test_a_mistake_on_the_command_line_is_one_line(tiny_datastore: Path, stranger: int) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", free_port()))
        mistakes = {
            f"http://127.0.0.1:{taken.getsockname()[1]}": "can't be reached: ",
            f"http://127.0.0.1:{stranger}": "is no Tailstack server",
        }
        for url, message in mistakes.items():
            done = command("--url", url, "--datastore", tiny_datastore)
            assert done.returncode == 1
            assert done.stderr.startswith("error: ")
            assert message in done.stderr
            assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:3000", "isn't an address such as"),
        ("3000", "isn't an address such as"),
        ("http://", "isn't an address such as"),
        ("http://localhost:many", "isn't an address: "),
        ("https://localhost", "measure the server over http://"),
    ],
)
def test_what_is_no_address_is_said_so(url: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Remote.parse(url)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"url": "http://x", "model": Path("x.onnx")}, "choose one"),
        ({"url": "http://x", "against": ["torch"]}, "--against"),
        ({"key": "k"}, "--key is for a server"),
        ({"min_top1": 80}, "--min_top1 is 80"),
        ({"max_p99_ms": 0}, "--max_p99_ms is 0"),
        ({"rounds": 0}, "--rounds"),
        ({"threads": -1, "against": ["torch"]}, "--threads is -1"),
        ({"seconds": float("nan")}, "--seconds"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run_evaluation(EvalSettings(Path("nowhere"), **changes))


@pytest.mark.parametrize(
    ("limits", "failed", "says"),
    [
        ({}, 2, []),
        ({"min_top1": 0.75, "max_p99_ms": 50.0}, 0, []),
        ({"min_top1": 0.76}, 2, ["top-1 is 0.7500, below --min_top1 0.76"]),
        ({"max_p99_ms": 49.9}, 0, ["p99 of one image at a time is 50.00 ms, above --max_p99_ms 49.9"]),
        ({"max_p99_ms": 50.0}, 2, ["2 request(s) with one image at a time failed, and --max_p99_ms allows none"]),
    ],
)
def test_limits_are_held_against_the_figures(limits: dict[str, float], failed: int, says: list[str]) -> None:
    report = {"accuracy": {"top1": 0.75}, "latency_ms": {"1": {"p99": 50.0}, "8": {"p99": 80.0}}}
    if failed:
        report["http"] = {"closed": {"1": {"failed": failed}, "64": {"failed": 0}}}
    assert broken_limits(report, EvalSettings(Path("nowhere"), **limits)) == says


def test_a_broken_limit_is_an_exit_code_and_a_line_each(tiny_model: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    short = ("--rounds", "1", "--seconds", "0", "--output", tmp_path)
    done = command(
        "--model", tiny_model, "--datastore", tiny_datastore, "--min_top1", "1", "--max_p99_ms", "1e-6", *short
    )
    assert done.returncode == 1
    assert [line.split(",")[1] for line in done.stderr.splitlines()] == [
        " below --min_top1 1",
        " above --max_p99_ms 1e-06",
    ]
    assert (tmp_path / "eval.json").exists()
