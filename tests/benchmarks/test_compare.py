"""The comparison on a small model: peers do the same work, and every row is of the system and load that it names."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks import comparison_http, comparison_process
from benchmarks.comparison_http import (
    CONCURRENCIES,
    OURS,
    Contestant,
    capacity_of_weakest,
    check_answers,
    closed_turn,
    contestants,
    measure_closed,
    measure_open,
    start,
)
from benchmarks.comparison_places import beside_earlier, is_ahead, place
from benchmarks.comparison_report import draw, markdown
from benchmarks.comparison_rows import Row, read_rows
from benchmarks.http_load import Body, form
from benchmarks.machine import describe_machine
from benchmarks.peer_server import DONE, Running, install, requirements
from benchmarks.peers.registry import PEERS
from benchmarks.picture import photo_pictures
from benchmarks.predictors import OnnxModel
from benchmarks.served import get_status
from benchmarks.wrk import Closed
from tailstack import datastore as datastores
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
def servers(tiny_model: Path, environments: Path, tiny_datastore: Path) -> list[Contestant]:
    pictures = photo_pictures(datastores.load(tiny_datastore).test)[::8]
    return contestants(["fastapi"], tiny_model, None, pictures, environments, threads=1)


@pytest.fixture(scope="module")
def rows(servers: list[Contestant]) -> list[Row]:
    with start(servers) as started:
        check_answers(started)
        closed = measure_closed(started, rounds=1, seconds=1)
        return closed + measure_open(started, min(40.0, capacity_of_weakest(closed)), rounds=1, seconds=1)


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
        assert row["system"] != OURS or row["relative_to_ours"] == 1


def test_a_restless_server_sleeps_but_for_its_turn(servers: list[Contestant], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peer_server.RESTLESS_CORES", -1.0)
    with start(servers[1:]) as [server]:
        processes = [server.running.process, *server.running.process.children(recursive=True)]
        wait_for(lambda: {process.status() for process in processes} == {psutil.STATUS_STOPPED})
        with server.turn():
            assert get_status(server.running.port, "/ready") == 200
        wait_for(lambda: {process.status() for process in processes} == {psutil.STATUS_STOPPED})
    assert not any(process.is_running() for process in processes)


def test_a_server_that_answers_something_else_is_refused(servers: list[Contestant]) -> None:
    ours, peer = servers
    broken = replace(peer, bodies=[*peer.bodies[:-1], form(b"no picture")])
    other = replace(peer, name="other", bodies=[*peer.bodies[1:], peer.bodies[0]])
    with start([ours, broken, other]) as started:
        with pytest.raises(UserError, match="fastapi answered 500"):
            check_answers(started[:2])
        with pytest.raises(UserError, match=r"other gives \d of 8 pictures another label than tailstack, such as"):
            check_answers([started[0], started[2]])


@needs_wrk
def test_every_picture_is_sent(servers: list[Contestant]) -> None:
    half = replace(servers[0], bodies=[servers[0].bodies[0], form(b"no picture")])
    with start([half]) as [server]:
        closed = closed_turn(server.running, half, 1, 1.0).closed
        opened, _ = comparison_http._open_turn(server, 10.0, 1.0)
    assert closed.failures == pytest.approx(closed.images_per_second * closed.seconds, abs=1.1)
    assert (len(opened.answers), opened.failed()) == (5, {"415": 5})


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (320.0, [(8, 1.0), 0.0375, (32, 1.0), 0.15]),
        (32.0, [(8, 1.0), 0.375, (32, 8.0), 1.5]),
        (0.0, [(8, 1.0), 12.0, (32, 256.0), 12288.0]),
    ],
)
def test_a_turn_is_as_long_as_a_slow_server_needs_and_waits_for_what_is_under_way(
    rate: float, expected: list[object], servers: list[Contestant], monkeypatch: pytest.MonkeyPatch
) -> None:
    course: list[object] = []

    def load(_url: str, _bodies: list[Body], concurrency: int, seconds: float) -> Closed:
        course.append((concurrency, seconds))
        return Closed(rate, np.array([1.0]), 0, seconds, 0.0)

    monkeypatch.setattr(comparison_http, "run_wrk", load)
    monkeypatch.setattr("benchmarks.comparison_http.time.sleep", course.append)
    closed_turn(Running(1, psutil.Process()), servers[0], 32, 1.0)
    assert course == expected


def test_a_peer_that_cannot_be_installed_is_named(tmp_path: Path) -> None:
    broken = replace(PEERS["fastapi"], environment="none", packages=("tailstack-has-no-such-peer",))
    with pytest.raises(UserError, match="none can't be installed"):
        install(broken, tmp_path)


def test_in_process_every_system_answers_as_the_file(tiny_model: Path, tiny_run: Path) -> None:
    model = OnnxModel.load(tiny_model, 1)
    systems = comparison_process.systems(model, tiny_model, tiny_run, 1)
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
    assert "100.0%" in comparison_process.agreement(systems, photos)[0]


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
    [(["--systems", "triton"], "invalid choice"), (["--rounds", "0"], "--rounds"), (["--model", "none.onnx"], "none")],
)
def test_mistakes_are_named(flags: list[str], message: str, tiny_datastore: Path, tiny_model: Path) -> None:
    command = [sys.executable, "benchmarks/compare.py", "--datastore", str(tiny_datastore), "--model", str(tiny_model)]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


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
    )


def test_places_are_shared_where_chance_explains_who_is_faster() -> None:
    # Of 8 rounds, 7 are the fewest that a fair coin gives in less than 5% of all cases: 9 of 256.
    first, second = row_of("a", [10.0] * 8), row_of("b", [9.0] * 6 + [11.0] * 2)
    third = row_of("c", [9.0] * 7 + [11.0])
    rows = [first, second, third]
    assert [place(row, rows) for row in rows] == [1, 1, 2]
    assert is_ahead(first, third)
    assert not is_ahead(first, first)


def test_an_earlier_run_says_which_order_it_had(tmp_path: Path) -> None:
    now = [row_of("a", [10.0] * 8), row_of("b", [9.0] * 8), row_of("c", [8.0] * 8)]
    assert beside_earlier(now, now).endswith("3 pairs of systems are ordered in both, 0 of them otherwise.")
    then = [row_of("a", [8.5] * 8), row_of("b", [9.0] * 8), row_of("c", [8.0] * 8)]
    path = tmp_path / "compare.json"
    path.write_text(json.dumps(then))
    assert beside_earlier(now, read_rows(path)).endswith("1 of them otherwise: b was ahead of a (http, 8).")
    path.write_text('[{"where": "http"}]')
    with pytest.raises(UserError, match="with the rounds of each row"):
        read_rows(path)
