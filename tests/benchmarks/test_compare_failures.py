"""What goes wrong in the comparison: a peer is left out, ours ends it, and what is measured by then is on the page."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks import comparison, comparison_http, comparison_turns
from benchmarks.comparison import CompareSettings, run_comparison
from benchmarks.comparison_http import capacity_of_weakest, measure_closed, measure_open
from benchmarks.comparison_report import Comparison
from benchmarks.comparison_rows import Row, relative
from benchmarks.comparison_servers import OURS, Absent, Contestant, Server, start
from benchmarks.comparison_turns import OpenTurn, Turn, failed_share, open_turn, pooled
from benchmarks.http_load import Load, LoadReport, form
from benchmarks.machine import describe_machine
from benchmarks.peer_server import Running
from benchmarks.wrk import Closed
from tailstack.errors import UserError
from tests.benchmarks.test_compare import row_of

NAMES = (OURS, "good", "bad")


def closed(rate: float, failures: int = 0) -> Closed:
    return Closed(rate, np.full(int(rate), 5.0), failures, 1.0, 0.1)


@pytest.fixture
def servers(idle: Running, monkeypatch: pytest.MonkeyPatch) -> list[Server]:
    """Three servers that are one process, at which nothing answers."""
    monkeypatch.setattr(Running, "is_restless", lambda _: False)

    def contestant(name: str) -> Contestant:
        return Contestant(name, "1", lambda: contextlib.nullcontext(idle), "/classify", [form(b"photo")])

    with start([contestant(name) for name in NAMES], Absent()) as started:
        return started


def in_closed_loop(monkeypatch: pytest.MonkeyPatch, outcome: Callable[[str, int], Closed]) -> dict[str, int]:
    """Let each turn be what `outcome` says of the server's name and of its number; return the numbers of turns."""
    turns: dict[str, int] = dict.fromkeys(NAMES, 0)

    def turn(_running: Running, server: Contestant, *_: Any) -> Turn:
        turns[server.name] += 1
        return Turn(outcome(server.name, turns[server.name]), 1.0)

    monkeypatch.setattr(comparison_http, "closed_turn", turn)
    return turns


@pytest.mark.parametrize("error", [UserError("wrk failed"), ConnectionResetError("reset"), psutil.NoSuchProcess(1)])
def test_a_peer_that_fails_is_left_out_and_the_others_go_on(
    error: Exception, servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome(name: str, turn: int) -> Closed:
        if name == "bad" and turn == 5:
            raise error
        return closed(100.0)

    turns, absent = in_closed_loop(monkeypatch, outcome), Absent()
    rows = measure_closed(servers, 8, 1.0, absent)
    assert [(row["system"], len(row["rounds"])) for row in rows] == [(name, 8) for name in NAMES[:2] for _ in range(3)]
    assert turns == {OURS: 24, "good": 24, "bad": 5}
    assert absent.names == {"bad"}
    assert absent.notes[0].startswith(f"**bad failed, and is left out from there on:** `{str(error)[:5]}")


def test_a_peer_that_answers_nothing_is_left_out_and_ours_ends_the_run(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Absent()
    in_closed_loop(monkeypatch, lambda name, _: closed(0.0 if name == "bad" else 100.0))
    assert {row["system"] for row in measure_closed(servers, 2, 1.0, absent)} == {OURS, "good"}
    assert absent.names == {"bad"}
    in_closed_loop(monkeypatch, lambda name, _: closed(0.0 if name == OURS else 100.0))
    with pytest.raises(UserError, match="tailstack: it answered no request in half of its turns at concurrency 1"):
        measure_closed(servers, 2, 1.0, Absent())


def test_one_turn_of_ours_without_an_answer_is_not_the_end(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_closed_loop(monkeypatch, lambda name, turn: closed(0.0 if name == OURS and turn <= 3 else 100.0))
    rows = measure_closed(servers, 3, 1.0, Absent())
    assert {row["relative_to_ours"] for row in rows} == {1.0}
    assert relative([1.0, 2.0], [0.0, 0.0]) is None
    assert pooled([Turn(closed(0.0), 1.0)]) is None


def test_the_turn_at_eight_warms_up_for_the_one_at_32(servers: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    paces: list[tuple[str, float | None]] = []

    def turn(_running: Running, server: Contestant, *arguments: Any) -> Turn:
        paces.append((server.name, arguments[-1]))
        return Turn(closed(0.0 if server.name == "bad" else 50.0), 1.0)

    monkeypatch.setattr(comparison_http, "closed_turn", turn)
    measure_closed(servers, 1, 1.0, Absent())
    assert paces == [*((name, pace) for name in NAMES[:2] for pace in (None, None, 50.0)), *[("bad", None)] * 3]


def test_requests_that_fail_are_in_the_row(servers: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    in_closed_loop(monkeypatch, lambda name, turn: closed(90.0, failures=10 if name == "bad" and turn > 3 else 0))
    rows = measure_closed(servers, 2, 1.0, Absent())
    assert [row["failed"] for row in rows] == [pytest.approx(10 / 190 if row["system"] == "bad" else 0) for row in rows]
    assert failed_share([Turn(closed(0.0), 1.0)]) == 1.0


def test_the_weakest_is_one_that_answers_all() -> None:
    ours, weak, failing = (row_of(name, [rate]) for name, rate in ((OURS, 90.0), ("weak", 37.0), ("failing", 2.0)))
    for row in (ours, weak, failing):
        row["batch_or_concurrency"] = 32
    failing["failed"] = 0.5
    assert capacity_of_weakest([ours, weak, failing]) == 37.0
    ours["failed"] = 0.1
    assert capacity_of_weakest([ours, failing]) == 90.0


@pytest.mark.parametrize(
    ("capacity", "rounds", "rate", "length"),
    [(37.0, 8, 25.9, 1000 / 8 / 25.9), (2.2, 8, 1.54, 30.0), (1.0, 8, 0.7, 30.0), (400.0, 8, 280.0, 3.0)],
)
def test_the_open_loop_is_at_its_share_of_the_weakest_at_random_and_long_enough(
    capacity: float, rounds: int, rate: float, length: float, servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: dict[str, list[tuple[float, float, int]]] = {name: [] for name in NAMES}

    def turn(_running: Running, server: Contestant, rate: float, seconds: float, seed: int, _: float) -> OpenTurn:
        loads[server.name].append((rate, seconds, seed))
        answers = [(0.0, 0.01)] * (3 if server.name != "bad" else 2)
        return OpenTurn(LoadReport(0.0, 1.0, 0.1, answers, [(0.5, "503")] * (3 - len(answers))), 1.0)

    monkeypatch.setattr(comparison_http, "open_turn", turn)
    rows = measure_open(servers, capacity, rounds, 1.0, Absent())
    expected = [(rate, pytest.approx(length), number) for number in range(rounds)]
    assert loads == dict.fromkeys(NAMES, expected)
    assert [row["failed"] for row in rows] == [0.0, 0.0, pytest.approx(1 / 3)]
    assert [row["load_cores"] for row in rows] == [pytest.approx(0.1)] * 3


def test_a_server_that_answers_nothing_in_the_open_loop_is_not_waited_for_long(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Load] = []

    def load(load: Load) -> LoadReport:
        sent.append(load)
        return LoadReport(0.0, 60.0, 0.1, [], [(60.0, "TimeoutError")])

    monkeypatch.setattr(comparison_turns, "run_load", load)
    with pytest.raises(UserError, match=r"it answered none of 0\.5 requests a second: \{'TimeoutError': 1\}"):
        open_turn(servers[0].running, servers[0].contestant, 0.5, 30.0, seed=3)
    assert [(one.seconds, one.seed) for one in sent] == [(4.0, 3)]


def test_a_peer_that_does_not_start_is_left_out(servers: list[Server]) -> None:
    @contextlib.contextmanager
    def failing() -> Iterator[Running]:
        raise UserError("bad did not get ready: " + 500 * "x" + " no such model")
        yield

    bad = Contestant("bad", "1", failing, "/", [])
    absent = Absent()
    with start([servers[0].contestant, bad], absent) as started:
        assert [server.contestant.name for server in started] == [OURS]
    assert absent.notes[0].endswith("x no such model`")
    assert len(absent.notes[0]) < 400


def rows_of(where: str) -> list[Row]:
    rows = [row_of(name, [10.0, 11.0]) for name in NAMES]
    for row in rows:
        row["where"], row["batch_or_concurrency"] = where, 32
    return rows


@pytest.fixture
def course(tiny_model: Path, tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CompareSettings:
    """A comparison in which nothing is really measured."""
    monkeypatch.setattr("benchmarks.wrk.shutil.which", lambda _: "wrk")
    monkeypatch.setattr(comparison, "cores_of_others", lambda: 0.0)
    monkeypatch.setattr(comparison, "contestants", lambda *_: ["ours"])
    monkeypatch.setattr(comparison, "start", lambda *_: contextlib.nullcontext([]))
    monkeypatch.setattr(comparison, "check_answers", lambda *_: [])
    monkeypatch.setattr(comparison.in_process, "systems", lambda *_: {})
    monkeypatch.setattr(comparison.in_process, "agreement", lambda *_: ["All agree."])
    monkeypatch.setattr(comparison.in_process, "measure", lambda *_: rows_of("in process"))
    monkeypatch.setattr(comparison.over_http, "measure_closed", lambda *_: rows_of("http"))
    monkeypatch.setattr(comparison.over_http, "measure_open", lambda *_: rows_of("http, open loop"))
    return CompareSettings(tiny_datastore, tiny_model, output=tmp_path / "results")


def stop(*_: object) -> list[Row]:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("part", "written", "missing"),
    [
        ("measure_closed", ["in process"], "Missing: http, http, open loop."),
        ("measure_open", ["in process", "http"], "Missing: http, open loop."),
        (None, ["in process", "http", "http, open loop"], None),
    ],
)
def test_each_part_is_written_when_it_is_measured(
    part: str | None,
    written: list[str],
    missing: str | None,
    course: CompareSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if part is not None:
        monkeypatch.setattr(comparison.over_http, part, stop)
    with contextlib.suppress(KeyboardInterrupt):
        run_comparison(course)
    rows = json.loads((course.output / "compare.json").read_text())
    assert list(dict.fromkeys(row["where"] for row in rows)) == written
    page = (course.output / "compare.md").read_text()
    assert missing in page if missing else "Missing" not in page
    assert "All agree." in page
    assert (course.output / "compare.png").exists()


def test_the_page_says_who_failed(tmp_path: Path) -> None:
    machine = {**describe_machine("CPUExecutionProvider", 1), "cores_of_others": 0.0}
    found = Comparison(tmp_path, machine, ["http"], absent=Absent(notes=["bad failed"]))
    found.add("http", rows_of("http"))
    assert "\n\nbad failed\n\n" in (tmp_path / "compare.md").read_text()


def test_files_in_a_store_are_served_from_their_copies(
    course: CompareSettings, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(comparison, "contestants", lambda *arguments: given.extend(arguments) or ["ours"])
    monkeypatch.setattr("benchmarks.predictors.fetch", lambda _: tiny_model)
    course.model, course.cheaper = Path("s3://bucket/model.onnx"), Path("s3://bucket/cheaper.onnx")
    run_comparison(course)
    assert given[1:3] == [tiny_model, tiny_model]


def test_what_is_cheap_to_check_is_checked_first(
    course: CompareSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    order: list[str] = []
    monkeypatch.setattr(comparison, "contestants", lambda *_: order.append("install") or ["ours"])
    monkeypatch.setattr(comparison.in_process, "measure", lambda *_: order.append("measure") or rows_of("in process"))
    run_comparison(course)
    assert order == ["install", "measure"]
    monkeypatch.setattr("benchmarks.wrk.shutil.which", lambda _: None)
    with pytest.raises(UserError, match="wrk, which isn't installed"):
        run_comparison(course)
    assert order == ["install", "measure"]
