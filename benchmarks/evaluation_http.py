"""What a server is worth: the same accuracy over HTTP, and how fast it answers.

Closed loop: `wrk` keeps so many requests under way, each followed by the next. Open loop: so many requests a second,
whether or not those before are answered; a request's time counts from when it was due, so that a stall is seen by all
that should have been sent meanwhile (no coordinated omission).
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import accuracy_figures, check_match, judge, judge_sets, spread_indices
from benchmarks.evaluation_contract import EvalSettings, Evaluation
from benchmarks.http_load import Load, LoadReport, form, run_load
from benchmarks.listening import find_server
from benchmarks.machine import OtherLoad, describe_machine
from benchmarks.peer_server import Running
from benchmarks.remote import Answered, Remote
from benchmarks.wrk import KEY, Closed, check_wrk, run_wrk
from serving.protocol import ModelDescription
from tailstack import datastore as datastores
from tailstack.datastore import Split
from tailstack.errors import UserError
from tailstack.progress import track

ASKERS = 8
"""Images under way at a time where accuracy is measured."""
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
SHARES = (0.25, 0.5, 0.75, 0.9)
"""Of the most that the closed loop reached: the rates of the open loop."""
PHOTOS = 64
"""Test photos, spread over the split, that the load sends in turn: a cascade takes longer for some than for others."""
WARM_UP_S = 1.0
ANSWERS = 8
"""That each connection of a turn gets, about: a server that is slow or has many under way takes more than a second."""


@dataclass(frozen=True)
class Turn:
    """One turn of the closed loop."""

    closed: Closed
    server_cpu_ms: float | None
    """A request; None where the server's processes can't be seen."""


@dataclass(frozen=True)
class Course:
    """A server, the photos that it is sent, and its processes where they are on this machine."""

    remote: Remote
    photos: list[bytes]
    running: Running | None

    def closed(self, concurrency: int, seconds: float) -> Turn:
        """Keep `concurrency` requests under way.

        Raises:
            UserError: none is answered.
        """
        bodies = [form(photo) for photo in self.photos]
        self.remote.settle(self.photos[0])
        before = self._cpu_seconds()
        closed = run_wrk(f"{self.remote.url}/classify", bodies, concurrency, seconds, key=self.remote.key)
        answered = closed.images_per_second * closed.seconds
        if answered < 1:
            raise UserError(f"{self.remote.url} answered no request at concurrency {concurrency}")
        return Turn(closed, self._milliseconds_since(before, answered))

    def open(self, rate: float, seconds: float) -> tuple[LoadReport, float | None]:
        """Send `rate` requests a second; the second figure is the server's milliseconds of processor time a request.

        Raises:
            UserError: none is answered.
        """
        with tempfile.TemporaryDirectory() as folder:
            for number, photo in enumerate(self.photos):
                (Path(folder) / f"{number:04}").write_bytes(photo)
            remote = self.remote
            remote.settle(self.photos[0])
            before = self._cpu_seconds()
            report = run_load(
                Load(
                    remote.port,
                    folder,
                    seconds=seconds,
                    rate=rate,
                    path=f"{remote.prefix}/classify",
                    host=remote.host,
                    key=remote.key,
                )
            )
        if not report.answers:
            raise UserError(f"{remote.url} answered none of {rate:g} requests a second: {report.failed()}")
        return report, self._milliseconds_since(before, len(report.answers))

    def _cpu_seconds(self) -> float:
        return self.running.cpu_seconds() if self.running else 0.0

    def _milliseconds_since(self, before: float, requests: float) -> float | None:
        return 1e3 * (self.running.cpu_seconds() - before) / requests if self.running else None


def evaluate_server(settings: EvalSettings) -> Evaluation:
    """Measure a server.

    Raises:
        UserError: it can't be reached, asks for a key, isn't ours, serves another model than one of the datastore,
            refuses an image, or wrk isn't installed.
    """
    check_wrk()
    remote = Remote.parse(settings.url, settings.key or os.environ.get(KEY, ""))
    card = remote.describe()
    store = datastores.load(settings.datastore)
    check_match(card, store)
    begin = time.perf_counter()
    answered = list(track(_ask(remote, card, store.test), "Accuracy over HTTP", len(store.test)))
    requests = len(answered) * max(1, len(card.coverages))
    rate = requests / (time.perf_counter() - begin)
    answers = judge(np.stack([answer.probabilities for answer in answered]), card, store)
    sets = {name: np.stack([answer.sets[name] for answer in answered]) for name in map(str, card.coverages)}
    photos = [store.test.read(int(index)) for index in spread_indices(store.test, min(PHOTOS, len(store.test)))]
    course = Course(remote, photos, find_server(remote.host, remote.port))
    load, latencies, busy = _measure(course, settings, rate)
    report = {
        **accuracy_figures(answers, store.test.labels),
        "prediction_sets": judge_sets(sets, store.test.labels, card.class_counts),
        **load,
        "against": {},
        "model": _describe_model(remote, card),
        "machine": {**describe_machine(card.execution_provider, None), "cores_of_others": busy},
    }
    return Evaluation(report, answers.probabilities, store.test.labels, latencies)


def _ask(remote: Remote, card: ModelDescription, test: Split) -> Iterator[Answered]:
    def ask(index: int) -> Answered:
        try:
            return remote.classify(test.read(index), card)
        except UserError as error:
            raise UserError(f"image {test.path(index)} (annotation {index}): {error}") from error

    with ThreadPoolExecutor(ASKERS) as pool:
        try:
            yield from pool.map(ask, range(len(test)))
        finally:
            pool.shutdown(cancel_futures=True)  # after the first refusal, thousands more would be asked for in vain


def turn_seconds(least: float, concurrency: int, rate: float) -> float:
    """Return how long a turn has to be for a server that answers `rate` requests a second: `least`, or longer."""
    return max(least, ANSWERS * concurrency / rate)


def _measure(course: Course, settings: EvalSettings, rate: float) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Return the report's part on speed, each request's milliseconds by rate, and the cores that others took."""
    rate = course.closed(ASKERS, turn_seconds(WARM_UP_S, ASKERS, rate)).closed.images_per_second
    others, start = OtherLoad(), time.perf_counter()
    before = course.running.cpu_seconds() if course.running else 0.0
    turns: dict[int, list[Turn]] = {concurrency: [] for concurrency in CONCURRENCIES}
    plan = [concurrency for _ in range(settings.rounds) for concurrency in CONCURRENCIES]
    for concurrency in track(plan, "Closed loop", len(plan)):
        turns[concurrency].append(course.closed(concurrency, turn_seconds(settings.seconds, concurrency, rate)))
    closed = {str(concurrency): _closed_figures(own) for concurrency, own in turns.items()}
    rates = [share * max(figures["throughput"] for figures in closed.values()) for share in SHARES]
    seconds = max(1.0, settings.rounds * settings.seconds)
    opened = {rate: course.open(rate, seconds) for rate in track(rates, "Open loop", len(rates))}
    server = (course.running.cpu_seconds() - before) / (time.perf_counter() - start) if course.running else 0.0
    figures = {
        "latency_ms": {name: part["latency_ms"] for name, part in closed.items()},
        "throughput": {name: part["throughput"] for name, part in closed.items()},
        "http": {
            "photos": len(course.photos),
            "mean_bytes": round(statistics.mean(map(len, course.photos))),
            "server_seen": course.running is not None,
            "closed": {name: part["load"] for name, part in closed.items()},
            "open": [_open_figures(rate, *outcome) for rate, outcome in opened.items()],
        },
    }
    latencies = {f"{rate:.0f} requests/s": report.milliseconds() for rate, (report, _) in opened.items()}
    return figures, latencies, round(max(0.0, others.cores() - server), 2)


def _closed_figures(turns: Sequence[Turn]) -> dict[str, Any]:
    """Return the medians over the rounds."""
    done = [turn.closed for turn in turns]
    cpu = [turn.server_cpu_ms for turn in turns if turn.server_cpu_ms is not None]
    return {
        "latency_ms": {
            name: statistics.median(getattr(closed, f"{name}_ms") for closed in done) for name in ("p50", "p90", "p99")
        },
        "throughput": statistics.median(closed.images_per_second for closed in done),
        "load": {
            "server_cpu_ms": statistics.median(cpu) if cpu else None,
            "load_cores": statistics.median(closed.load_cores for closed in done),
            "failed": sum(closed.failures for closed in done),
        },
    }


def _open_figures(rate: float, report: LoadReport, server_cpu_ms: float | None) -> dict[str, Any]:
    p50, p90, p99 = np.percentile(report.milliseconds(), [50, 90, 99])
    return {
        "rate": rate,
        "throughput": report.rate,
        "latency_ms": {"p50": float(p50), "p90": float(p90), "p99": float(p99)},
        "server_cpu_ms": server_cpu_ms,
        "load_cores": report.cpu_seconds / report.seconds,
        "failed": report.failed(),
    }


def _describe_model(remote: Remote, card: ModelDescription) -> dict[str, Any]:
    return {
        "name": card.name,
        "url": remote.url,
        "version": card.version,
        "technique": card.technique,
        "learners": [learner.model_dump() for learner in card.learners],
        "classes": len(card.classes),
        "image_size": list(card.image_size),
        "top1_in_fit": card.accuracy["top1"],
        "runtime": card.runtime,
    }
