"""What a server is worth: the same accuracy over HTTP, and how fast it answers.

Closed loop: so many requests are under way, each followed by the next. `wrk` keeps them so, but for one at a time, by
which a server is accepted or not: wrk drops what is under way when a turn ends, and so a server's longest stalls. Open
loop: so many requests a second, whether or not those before are answered; a request's time counts from when it was due,
so that a stall is seen by all that should have been sent meanwhile (no coordinated omission).
"""

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.accuracy import accuracy_figures, check_match, judge, judge_sets
from benchmarks.evaluation_contract import EvalSettings, Evaluation
from benchmarks.gates import ALONE
from benchmarks.http_load import Load, LoadReport, form, in_folder, run_load
from benchmarks.latency import percentiles
from benchmarks.listening import find_server
from benchmarks.machine import OtherLoad, describe_machine
from benchmarks.peer_server import Running
from benchmarks.picture import PHOTOS
from benchmarks.remote import Answered, Remote
from benchmarks.wrk import KEY, Closed, check_wrk, run_wrk, turn_seconds
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
WARM_UP_S = 1.0


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
        self.remote.settle(self.photos[0])
        before = self._cpu_seconds()
        if str(concurrency) == ALONE:
            closed = _as_closed(self._send(seconds))
        else:
            bodies = [form(photo) for photo in self.photos]
            closed = run_wrk(f"{self.remote.url}/classify", bodies, concurrency, seconds, key=self.remote.key)
        if not closed.images_per_second:
            raise UserError(f"{self.remote.url} answered no request at concurrency {concurrency}")
        return Turn(closed, self._milliseconds_since(before, closed.images_per_second * closed.seconds))

    def open(self, rate: float, seconds: float) -> tuple[LoadReport, float | None]:
        """Send `rate` requests a second; the second figure is the server's milliseconds of processor time a request.

        Raises:
            UserError: none is answered.
        """
        self.remote.settle(self.photos[0])
        before = self._cpu_seconds()
        report = self._send(seconds, rate)
        if not report.answers:
            raise UserError(f"{self.remote.url} answered none of {rate:g} requests a second: {report.failed()}")
        return report, self._milliseconds_since(before, len(report.answers))

    def _send(self, seconds: float, rate: float = 0.0) -> LoadReport:
        """Send `rate` requests a second; where that is 0, one after the other."""
        remote = self.remote
        with in_folder(self.photos) as folder:
            return run_load(
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
    photos = [store.test.read(int(index)) for index in store.test.spread(min(PHOTOS, len(store.test)))]
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


def _as_closed(report: LoadReport) -> Closed:
    return Closed(
        images_per_second=report.rate,
        milliseconds=report.milliseconds(),
        failures=len(report.failures),
        seconds=report.seconds,
        load_cores=report.cpu_seconds / report.seconds,
    )


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
    """Return the medians over the rounds, and percentiles of the answers of all rounds."""
    done = [turn.closed for turn in turns]
    cpu = [turn.server_cpu_ms for turn in turns if turn.server_cpu_ms is not None]
    return {
        "latency_ms": percentiles(np.concatenate([closed.milliseconds for closed in done])),
        "throughput": statistics.median(closed.images_per_second for closed in done),
        "load": {
            "server_cpu_ms": statistics.median(cpu) if cpu else None,
            "load_cores": statistics.median(closed.load_cores for closed in done),
            "failed": sum(closed.failures for closed in done),
        },
    }


def _open_figures(rate: float, report: LoadReport, server_cpu_ms: float | None) -> dict[str, Any]:
    return {
        "rate": rate,
        "throughput": report.rate,
        "latency_ms": percentiles(report.milliseconds()),
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
