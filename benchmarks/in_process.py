"""What the server is measured against: the same decoding and inference, called without HTTP, in this process."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.http_load import LoadReport
from benchmarks.predictors import OnnxModel
from tailstack.images import decode

SLOTS = 2
"""Threads that decode and infer side by side, as many as the server has on a CPU."""


@dataclass(frozen=True)
class InProcess:
    """Decoding and inference of pictures."""

    model: OnnxModel
    pictures: Iterator[bytes]
    """Encoded ones, without end: an `itertools.cycle`, from which several threads may take."""

    def run(self, seconds: float, concurrency: int) -> LoadReport:
        """Classify for a while.

        Args:
            seconds: how long.
            concurrency: pictures under way at a time: those of one batch in each of `SLOTS` threads, or a single one.
        """
        report = LoadReport()
        threads = min(SLOTS, concurrency)
        begin = time.perf_counter()

        def work() -> None:
            while (start := time.perf_counter()) - begin < seconds:
                self._classify(concurrency // threads)
                taken = time.perf_counter() - start
                report.answers.extend(itertools.repeat((start - begin, taken), concurrency // threads))

        _in_threads(work, threads)
        report.seconds = time.perf_counter() - begin
        return report

    def _classify(self, batch: int) -> None:
        size = self.model.artifact.image_size
        self.model.predict(np.stack([decode(next(self.pictures), size) for _ in range(batch)]))


def _in_threads(work: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
