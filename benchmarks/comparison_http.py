"""Our server beside the peers', over HTTP: the same file, pictures and cores, in short turns.

All servers are started once. Most of them rest while it isn't their turn; those that don't are stopped meanwhile. A
machine that is shared is a third slower now and then, for seconds or for minutes: only turns that are shorter than
that, and many, meet all servers alike.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from benchmarks.comparison_rows import HTTP, OPEN_LOOP, Row, relative
from benchmarks.comparison_servers import OURS, Absent, Contestant, Server, stop_absent
from benchmarks.comparison_turns import (
    WARM_UP_CONCURRENCY,
    OpenTurn,
    Turn,
    closed_turn,
    failed_share,
    open_turn,
    pooled,
)
from benchmarks.latency import percentiles
from tailstack.errors import UserError
from tailstack.progress import track

T = TypeVar("T")
CONCURRENCIES = (1, 8, 32)
OPEN_SHARE = 0.7
"""Of the weakest server's capacity: the rate of the open loop."""
OPEN_TURNS = 3
"""Length of a turn of the open loop, in turns of the closed one, at least."""
OPEN_REQUESTS = 1000
"""That each server is sent in all rounds, about: a 99th percentile takes many."""
LONGEST_OPEN_TURN_S = 30.0
"""However slow the weakest server is."""


def measure_closed(servers: Sequence[Server], rounds: int, seconds: float, absent: Absent) -> list[Row]:
    """Measure every server at each concurrency, in turns.

    Args:
        servers: ours first.
        rounds: turns of each.
        seconds: length of a turn at one concurrency; longer where the server is slow.
        absent: takes the peers that fail, of which there are no rows.

    Raises:
        UserError: ours fails.
    """
    turns: dict[tuple[str, int], list[Turn]] = defaultdict(list)
    for number, server in track(in_turns(servers, rounds), "Closed loop", rounds * len(servers)):
        contestant = server.contestant
        if contestant.name in absent.names:
            continue
        with absent.unless_ours(contestant.name), server.turn():
            for concurrency, turn in _closed_turns(server, seconds, number / rounds):
                turns[contestant.name, concurrency].append(turn)
        stop_absent([server], absent)
    rows: list[Row] = []
    for server in absent.among(servers):
        contestant = server.contestant
        with absent.unless_ours(contestant.name):
            rows += [
                _closed_row(contestant, concurrency, turns[contestant.name, concurrency], turns[OURS, concurrency])
                for concurrency in CONCURRENCIES
            ]
    stop_absent(servers, absent)
    return rows


def measure_open(servers: Sequence[Server], capacity: float, rounds: int, seconds: float, absent: Absent) -> list[Row]:
    """Measure how long every server takes at `OPEN_SHARE` of a `capacity` in requests per second, in turns.

    The other arguments, and what is raised, are those of `measure_closed`.
    """
    rate = max(0.01, round(OPEN_SHARE * capacity, 2))
    length = max(OPEN_TURNS * seconds, min(LONGEST_OPEN_TURN_S, OPEN_REQUESTS / (rounds * rate)))
    turns: dict[str, list[OpenTurn]] = defaultdict(list)
    for number, server in track(in_turns(servers, rounds), f"Open loop, {rate:g} a second", rounds * len(servers)):
        contestant = server.contestant
        if contestant.name in absent.names:
            continue
        with absent.unless_ours(contestant.name), server.turn():
            turn = open_turn(server.running, contestant, rate, length, number, number / rounds)
            turns[contestant.name].append(turn)
        stop_absent([server], absent)
    rows: list[Row] = []
    for server in absent.among(servers):
        contestant = server.contestant
        with absent.unless_ours(contestant.name):
            rows.append(_open_row(contestant, rate, turns[contestant.name], turns[OURS]))
    return rows


def capacity_of_weakest(rows: Sequence[Row]) -> float:
    """Return requests per second of the slowest server at the highest concurrency; one that fails there has none."""
    most = [row for row in rows if row["batch_or_concurrency"] == max(CONCURRENCIES)]
    return min(row["images_per_second"] for row in most if row["system"] == OURS or not row["failed"])


def in_turns(servers: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Yield every server once a round, with the round's number, each round beginning with another one."""
    for number in range(rounds):
        start = number % len(servers)
        yield from ((number, server) for server in [*servers[start:], *servers[:start]])


def _closed_turns(server: Server, seconds: float, share: float) -> Iterator[tuple[int, Turn]]:
    """Yield a turn at each concurrency. A turn at that of a warm-up is one for the next turn."""
    pace = None
    for concurrency in CONCURRENCIES:
        turn = closed_turn(server.running, server.contestant, concurrency, seconds, share, pace)
        answers = turn.closed.images_per_second > 0
        pace = turn.closed.pace if answers and concurrency >= WARM_UP_CONCURRENCY else None
        yield concurrency, turn


def _closed_row(server: Contestant, concurrency: int, own: Sequence[Turn], ours: Sequence[Turn]) -> Row:
    rates = [turn.closed.images_per_second for turn in own]
    rate, taken = statistics.median(rates), pooled(own)
    if not rate:
        raise UserError(f"it answered no request in half of its turns at concurrency {concurrency}")
    return Row(
        where=HTTP,
        system=server.name,
        version=server.version,
        batch_or_concurrency=concurrency,
        images_per_second=rate,
        p50_ms=taken["p50"] if taken else None,
        p99_ms=taken["p99"] if taken else None,
        server_cpu_ms_per_request=statistics.median(turn.server_cpu_ms for turn in own),
        relative_to_ours=relative(rates, [turn.closed.images_per_second for turn in ours]),
        rounds=rates,
        failed=failed_share(own),
        load_cores=statistics.median(turn.closed.load_cores for turn in own),
    )


def _open_row(server: Contestant, rate: float, own: Sequence[OpenTurn], ours: Sequence[OpenTurn]) -> Row:
    reports = [turn.report for turn in own]
    answered, failed = sum(len(report.answers) for report in reports), sum(len(report.failures) for report in reports)
    if not answered:
        raise UserError(f"it answered none of {rate:g} requests a second: {reports[0].failed()}")
    taken = percentiles(np.concatenate([report.milliseconds() for report in reports]))
    rates = [report.rate for report in reports]
    return Row(
        where=OPEN_LOOP,
        system=server.name,
        version=server.version,
        batch_or_concurrency=rate,
        images_per_second=statistics.median(rates),
        p50_ms=taken["p50"],
        p99_ms=taken["p99"],
        server_cpu_ms_per_request=1e3 * sum(turn.server_cpu_s for turn in own) / (answered + failed),
        relative_to_ours=relative(rates, [turn.report.rate for turn in ours]),
        rounds=rates,
        failed=failed / (answered + failed),
        load_cores=sum(report.cpu_seconds for report in reports) / sum(report.seconds for report in reports),
    )
