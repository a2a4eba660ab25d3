"""The comparison on a small model: peers do the same work, and every row is of the system and load that it names."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks import comparison_http, comparison_process, comparison_turns, predictors
from benchmarks.comparison_http import CONCURRENCIES, capacity_of_weakest, measure_closed, measure_open
from benchmarks.comparison_places import beside_earlier, is_ahead, place
from benchmarks.comparison_report import draw, markdown
from benchmarks.comparison_rows import Row, read_rows
from benchmarks.comparison_servers import (
    OURS,
    Absent,
    Contestant,
    check_answers,
    contestants,
    first_label,
    start,
)
from benchmarks.comparison_turns import closed_turn, open_turn
from benchmarks.http_load import Body, form
from benchmarks.machine import describe_machine
from benchmarks.peer_server import DONE, Running, install, requirements
from benchmarks.peers.registry import PEERS
from benchmarks.picture import photo_pictures
from benchmarks.predictors import OnnxModel
from benchmarks.served import get_status
from benchmarks.wrk import Closed
from tailstack import datastore as datastores
from tailstack.artifact import Artifact
from tailstack.errors import UserError
from tests.serving.conftest import wait_for

ROOT = Path(__file__).parents[2]
needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk makes the load: apt-get install wrk")


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' own environment in the place of FastAPI's: it has all that this peer needs."""
    folder = tmp_path_factory.mktemp("environments")
    environment = folder / "fastapi"
    environment.mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (environment / part).symlink_to(Path(sys.prefix, part))
    (environment / DONE).write_text("\n".join(requirements(PEERS["fastapi"])))
    return folder


@pytest.fixture(scope="module")
def servers(
    tiny_model: Path, environments: Path, tiny_datastore: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Contestant]:
    pictures = photo_pictures(datastores.load(tiny_datastore).test)[::8]
    cache = tmp_path_factory.mktemp("cache")
    return contestants(["fastapi"], tiny_model, None, pictures, environments, 1, cache, Absent())


@pytest.fixture(scope="module")
def rows(servers: list[Contestant]) -> list[Row]:
    absent = Absent()
    with start(servers, absent) as started, pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison_http, "OPEN_REQUESTS", 1)
        running = check_answers(started, absent)
        closed = measure_closed(running, 1, 1, absent)
        found = closed + measure_open(running, min(40.0, capacity_of_weakest(closed)), 1, 1, absent)
    assert not absent.notes
    return found


@needs_wrk
def test_every_server_is_measured_at_every_load(rows: list[Row]) -> None:
    closed = {(row["system"], row["batch_or_concurrency"]) for row in rows if row["where"] == "http"}
    assert closed == {(name, concurrency) for name in (OURS, "fastapi") for concurrency in CONCURRENCIES}
    opened = [row for row in rows if row["where"] == "http, open loop"]
    assert {row["system"] for row in opened} == {OURS, "fastapi"}
    assert len({row["batch_or_concurrency"] for row in opened}) == 1
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["images_per_second"] > 0
        assert row["server_cpu_ms_per_request"]
        assert 0 < (row["load_cores"] or 0) <= 1.1
        assert row["failed"] == 0
        assert row["system"] != OURS or row["relative_to_ours"] == 1


def test_a_restless_server_sleeps_but_for_its_turn(servers: list[Contestant], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peer_server.RESTLESS_CORES", -1.0)
    with start(servers[1:], Absent()) as [server]:
        processes = [server.running.process, *server.running.process.children(recursive=True)]
        wait_for(lambda: {process.status() for process in processes} == {psutil.STATUS_STOPPED})
        with server.turn():
            assert get_status(server.running.port, "/ready") == 200
        wait_for(lambda: {process.status() for process in processes} == {psutil.STATUS_STOPPED})
    assert not any(process.is_running() for process in processes)


def test_a_server_that_answers_something_else_is_left_out(servers: list[Contestant]) -> None:
    ours, peer = servers
    broken = replace(peer, bodies=[*peer.bodies[:-1], form(b"no picture")])
    other = replace(peer, name="other", bodies=[*peer.bodies[1:], peer.bodies[0]])
    absent = Absent()
    with start([ours, broken, other], absent) as started:
        assert check_answers(started, absent) == started[:1]
        # What is left out takes no more of the machine.
        assert [server.running.process.is_running() for server in started] == [True, False, False]
        mute = replace(started[0], contestant=replace(ours, bodies=[form(b"no picture")]))
        with pytest.raises(UserError, match="tailstack: it answered 415"):
            check_answers([mute], Absent())
    first, second = absent.notes
    assert first.startswith("**fastapi failed, and is left out from there on:** `it answered 500")
    assert "pictures another label than tailstack, such as" in second
    with pytest.raises(UserError, match="tailstack: it can't be reached"):
        check_answers(started[:1], Absent())


def test_labels_are_found_in_every_peers_answer() -> None:
    label = 'Grüße an "Bär" \\ {"label": 1}'
    predictions = [{"label": label, "probability": 0.9}, {"label": "other", "probability": 0.1}]
    nested = {"outputs": [{"name": "predictions", "data": [json.dumps(predictions)]}]}
    for answer in ({"model": {"name": "label"}, "predictions": predictions}, [predictions], nested):
        assert first_label(json.dumps(answer)) == label
    for answer in ("", "[]", "no JSON", '{"label": 1}'):
        assert first_label(answer) is None


@needs_wrk
def test_every_picture_is_sent(servers: list[Contestant]) -> None:
    half = replace(servers[0], bodies=[servers[0].bodies[0], form(b"no picture")])
    with start([half], Absent()) as [server]:
        closed = closed_turn(server.running, half, 1, 1.0).closed
        opened = open_turn(server.running, half, 10.0, 1.0, seed=0).report
    assert closed.failures == pytest.approx(closed.images_per_second * closed.seconds, abs=1.1)
    assert (len(opened.answers), opened.failed()) == (5, {"415": 5})


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (320.0, [(8, 1.0), 0.0375, (32, 1.0), 0.15]),
        (32.0, [(8, 1.0), 0.375, (32, 8.0), 1.5]),
        # However slow it is.
        (1.0, [(8, 1.0), 12.0, (32, 60.0), 30.0]),
    ],
)
def test_a_turn_is_as_long_as_a_slow_server_needs_and_waits_for_what_is_under_way(
    rate: float, expected: list[object], servers: list[Contestant], idle: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    course: list[object] = []

    def load(_url: str, _bodies: list[Body], concurrency: int, seconds: float) -> Closed:
        course.append((concurrency, seconds))
        return Closed(rate, np.array([1.0]), 0, seconds, 0.0)

    monkeypatch.setattr(comparison_turns, "run_wrk", load)
    monkeypatch.setattr("benchmarks.comparison_turns.time.sleep", course.append)
    closed_turn(idle, servers[0], 32, 1.0)
    assert course == expected
    course.clear()
    closed_turn(idle, servers[0], 32, 1.0, pace=rate)
    assert course == expected[2:]


@pytest.mark.parametrize("stalls", [1, 2])
def test_a_warm_up_without_an_answer_is_repeated_once(
    stalls: int, servers: list[Contestant], idle: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    course: list[float] = []

    def load(_url: str, _bodies: list[Body], _concurrency: int, seconds: float) -> Closed:
        course.append(seconds)
        return Closed(0.0 if len(course) <= stalls else 320.0, np.array([1.0]), 0, seconds, 0.0)

    monkeypatch.setattr(comparison_turns, "run_wrk", load)
    monkeypatch.setattr("benchmarks.comparison_turns.time.sleep", lambda _: None)
    if stalls == 1:
        closed_turn(idle, servers[0], 32, 1.0)
        assert course == [1.0, 10.0, 1.0]
    else:
        with pytest.raises(UserError, match="it answered no request in 10 s, with 8 under way"):
            closed_turn(idle, servers[0], 32, 1.0)


def test_work_that_the_load_leaves_behind_counts_for_what_it_is(
    servers: list[Contestant], idle: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    class Busy(Running):
        """A server that takes 10 ms of processor time a request."""

        def cpu_seconds(self) -> float:
            """Return what it took for those so far: of the warm-up, then of all, those under way included."""
            events.append("look")
            return (20 + 8) * 0.01 if events.count("look") == 1 else (28 + 100 + 32) * 0.01

    def load(_url: str, _bodies: list[Body], concurrency: int, seconds: float) -> Closed:
        events.append("load")
        return Closed(20.0 if concurrency == 8 else 90.0, np.array([1.0]), 0 if concurrency == 8 else 10, 1.0, 0.0)

    monkeypatch.setattr(comparison_turns, "run_wrk", load)
    monkeypatch.setattr("benchmarks.comparison_turns.time.sleep", lambda _: events.append("wait"))
    turn = closed_turn(Busy(idle.port, idle.process), servers[0], 32, 1.0)
    assert events == ["load", "wait", "look", "load", "wait", "look"]
    assert turn.server_cpu_ms == pytest.approx(10)


def test_each_round_begins_with_other_photos(servers: list[Contestant]) -> None:
    bodies = servers[0].bodies
    assert [servers[0].bodies_from(number / 4)[0] for number in range(4)] == bodies[::2]
    assert servers[0].bodies_from(0.5) == [*bodies[4:], *bodies[:4]]


def test_our_server_keeps_what_it_measures_of_itself_to_the_run(servers: list[Contestant]) -> None:
    ours = servers[0].serve
    assert isinstance(ours, partial)
    assert Path(ours.keywords["XDG_CACHE_HOME"]).name.startswith("cache")


def test_a_peer_that_cannot_be_installed_is_named(tmp_path: Path) -> None:
    broken = replace(PEERS["fastapi"], environment="none", packages=("tailstack-has-no-such-peer",))
    with pytest.raises(UserError, match="none can't be installed"):
        install(broken, tmp_path)


def test_in_process_every_system_answers_as_the_file(tiny_model: Path, tiny_run: Path) -> None:
    model = OnnxModel.load(tiny_model, 1)
    systems = comparison_process.systems(model, model, tiny_run, 1)
    # Compiling takes a minute, and is torch's own matter.
    systems.pop("torch, compiled")
    height, width = model.artifact.image_size
    photos = np.random.default_rng(0).integers(0, 256, (16, height, width, 3), dtype=np.uint8)
    expected = model.predict(photos)
    for name, predict in systems.items():
        np.testing.assert_allclose(predict(photos), expected, atol=0.2 if "bf16" in name else 1e-4)  # bf16 has 8 bits
    rows = comparison_process.measure(systems, photos, rounds=1, seconds=0.0)
    assert [(row["system"], row["batch_or_concurrency"]) for row in rows] == [
        (name, batch) for batch in comparison_process.BATCHES for name in systems
    ]
    [line] = comparison_process.agreement(systems, photos)
    assert all(f"{name} 100.0% (" in line for name in systems if "bf16" not in name)


def test_a_precision_that_the_processor_lacks_is_no_row(
    tiny_model: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = predictors.OpenVinoEngine.open

    def open_in_f32(path: Path, threads: int, *, precision: str) -> Any:
        """Take float32 for any precision, as OpenVINO does without a word."""
        return opened(path, threads)

    monkeypatch.setattr(predictors.OpenVinoEngine, "open", open_in_f32)
    found = comparison_process.systems(OnnxModel.load(tiny_model, 1), None, tiny_run, 1)
    assert [name for name in found if name.startswith("openvino")] == ["openvino, f32"]


def test_a_cheaper_file_is_of_the_same_run(tiny_model: Path) -> None:
    def other(**provenance: Any) -> Artifact:
        return plain.model_copy(update={"provenance": {**plain.provenance, **provenance}})

    plain = OnnxModel.load(tiny_model, 1).artifact
    digests, config, run = (plain.provenance[key] for key in ("weights", "config", "run"))
    first, second = digests
    student, stranger = {"0-student": "5"}, {"0-student": "5", "1-stranger": "6"}
    taught = {**config, "teacher": run}
    for good in (
        plain,
        other(weights={first: digests[first]}),
        other(weights={**student, second: digests[second]}, config={**config, "teacher": "somewhere/else"}),
        other(weights=student, config=taught),
    ):
        comparison_process.check_cheaper(plain, good)
    for wrong, says in (
        (plain.model_copy(update={"classes": plain.classes[::-1]}), "another classes"),
        (plain.model_copy(update={"image_size": (7, 7)}), "another image_size"),
        (other(weights=student), "other weights"),
        (other(weights={**student, second: digests[second]}), "other weights"),
        (other(weights=stranger, config=taught), "other weights"),
        (other(weights=student, config={**config, "teacher": "somewhere/else"}), "other weights"),
    ):
        with pytest.raises(UserError, match=says):
            comparison_process.check_cheaper(plain, wrong)


@needs_wrk
def test_the_page_and_the_figure_show_every_system(rows: list[Row], tmp_path: Path) -> None:
    page = markdown(rows, {**describe_machine("CPUExecutionProvider", 1), "cores_of_others": 0.0}, ["A note."])
    assert page.count("| fastapi |") == len(CONCURRENCIES) + 1
    assert "A note." in page
    draw(rows, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--systems", "triton"], "invalid choice"),
        (["--rounds", "0"], "--rounds"),
        (["--systems", "--in_process", "false"], "there is nothing to measure"),
        (["--systems", "--model", "none.onnx"], "none"),
    ],
)
def test_mistakes_are_named(
    flags: list[str], message: str, tiny_datastore: Path, tiny_model: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "benchmarks/compare.py", "--datastore", str(tiny_datastore), "--model", str(tiny_model)]
    command += ["--output", str(tmp_path)]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def row_of(system: str, rounds: list[float]) -> Row:
    return Row(
        where="http",
        system=system,
        version="1",
        batch_or_concurrency=8,
        images_per_second=rounds[0],
        p50_ms=1.0,
        p99_ms=2.0,
        server_cpu_ms_per_request=1.0,
        relative_to_ours=1.0,
        rounds=rounds,
        failed=0.0,
        load_cores=0.1,
    )


def test_places_are_shared_where_chance_explains_who_is_faster() -> None:
    # Of 8 rounds, 7 are the fewest that a fair coin gives in less than 5% of all cases: 9 of 256.
    first, second = row_of("a", [10.0] * 8), row_of("b", [9.0] * 6 + [11.0] * 2)
    third = row_of("c", [9.0] * 7 + [11.0])
    rows = [first, second, third]
    assert [place(row, rows) for row in rows] == [1, 1, 2]
    assert is_ahead(first, third)
    assert not is_ahead(first, first)


def test_a_system_whose_requests_failed_has_no_place_and_takes_none() -> None:
    quick, slow = row_of("quick", [10.0] * 8), row_of("slow", [9.0] * 8)
    quick["failed"] = 0.004
    assert [place(row, [quick, slow]) for row in (quick, slow)] == [None, 1]
    page = markdown([quick, slow], {**describe_machine("CPUExecutionProvider", 1), "cores_of_others": 0.0}, [])
    assert "| quick | 1 | 8 | - | 10.0 | 1.00 | 1.0 | 2.0 | 1.0 | 0.40% | 0.10 |" in page
    assert "**Requests failed: quick at 8.**" in page


def test_an_earlier_run_says_which_order_it_had(tmp_path: Path) -> None:
    now = [row_of("a", [10.0] * 8), row_of("b", [9.0] * 8), row_of("c", [8.0] * 8)]
    assert beside_earlier(now, now).endswith("3 pairs of systems are ordered in both, 0 of them otherwise.")
    then = [row_of("a", [8.5] * 8), row_of("b", [9.0] * 8), row_of("c", [8.0] * 8)]
    path = tmp_path / "compare.json"
    path.write_text(json.dumps(then))
    assert beside_earlier(now, read_rows(path)).endswith("1 of them otherwise: b was ahead of a (http, 8).")
    broken = {**then[0], "rounds": ["8.5"]}
    for content in ([{"where": "http"}], {}, [broken], [*then, row_of("d", [7.0])]):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match="with the rounds of each row"):
            read_rows(path)


def test_runs_of_earlier_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    now = json.loads((ROOT / "benchmarks" / "results" / "compare.json").read_text())
    # Before these were measured.
    then = [{key: value for key, value in row.items() if key not in {"failed", "load_cores"}} for row in now]
    path.write_text(json.dumps(then))
    rows = read_rows(path)
    assert {(row["failed"], row["load_cores"]) for row in rows} == {(0.0, None)}
    assert beside_earlier(rows, rows).endswith(" 0 of them otherwise.")
