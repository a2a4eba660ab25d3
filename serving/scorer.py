"""From a source's images to rows, in this process: reading, decoding and inference side by side."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from serving.decoding import decode_safely
from serving.runtime import Model, fetch_model
from serving.score_output import Part
from serving.score_rows import RowMaker
from serving.score_source import Item, Source
from tailstack.engine import Runtime
from tailstack.errors import UserError
from tailstack.images import MAX_PIXELS, ImageError, Pixels, Size
from tailstack.progress import track
from tailstack.remote import spelled
from tailstack.session import Device

T = TypeVar("T")
U = TypeVar("U")
_AHEAD = 2
"""Batches that wait for each thread, so that none waits for a part to be written."""


@dataclass(frozen=True)
class Wanted:
    """What rows are made with, here or on a cluster's machines."""

    model: Path
    version: str
    """The file's, when the command began."""
    device: Device
    runtime: Runtime
    public_key: Path | None
    batch_size: int
    top_k: int
    coverage: float | None


class Scorer:
    """A loaded model that makes rows.

    On a CPU each thread reads, decodes and runs batches of its own, on one core; a GPU runs one batch while other
    threads decode the next. A batch is always the same images, whoever runs it, so that its rows are the same too.

    Args:
        wanted: the model, and what is wanted of it.
        threads: cores to use.

    Raises:
        UserError: the model can't be run, doesn't have what is wanted, or isn't of the version that is wanted.
    """

    def __init__(self, wanted: Wanted, threads: int) -> None:
        self._model = Model.load(
            fetch_model(wanted.model),
            wanted.device,
            threads,
            wanted.batch_size,
            wanted.runtime,
            public_key=wanted.public_key,
        )
        if self._model.version != wanted.version:
            raise UserError(
                f"model {spelled(wanted.model)} is version {self._model.version} now, and was {wanted.version} when "
                "the command began: the file was replaced, or isn't the same on each machine"
            )
        self._maker = RowMaker(self._model.artifact, wanted.top_k, wanted.coverage)
        self._batch_size = wanted.batch_size
        self._slots = threading.Semaphore(self._model.slots)
        self._threads = max(self._model.slots, threads + 1)

    def parts(self, source: Source, parts: Sequence[Part]) -> Iterator[tuple[Part, pa.Table]]:
        """Yield the rows of parts, one after the other."""
        counts = [-(-len(part) // self._batch_size) for part in parts]
        batches = (batch for part in parts for batch in _batches(source.items(part.start, part.stop), self._batch_size))
        tables = track(_in_order(self.score, batches, self._threads), "Scoring", sum(counts))
        for part, count in zip(parts, counts, strict=True):
            yield part, pa.concat_tables(islice(tables, count))

    def score(self, items: Sequence[Item]) -> pa.Table:
        """Return the rows of one batch, in order; one of an image that can't be read or decoded has an error."""
        size = self._model.artifact.image_size
        found = [_decode(item, size) for item in items]
        pixels = [image for image in found if not isinstance(image, str)]
        answer = None
        if pixels:
            with self._slots:
                answer = self._model.classify(np.stack(pixels), alone=False)
        errors = [image if isinstance(image, str) else None for image in found]
        return self._maker.rows([item.uri for item in items], answer, errors)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _decode(item: Item, size: Size) -> Pixels | str:
    """Return an image's pixels, or why there are none."""
    try:
        data = item.read()
    # Each file system raises errors of its own, a damaged zip others.
    except Exception as error:
        return f"can't be read: {str(error) or type(error).__name__}"
    try:
        return decode_safely(data, size, MAX_PIXELS)
    except ImageError as error:
        return str(error)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def _in_order(work: Callable[[T], U], inputs: Iterable[T], threads: int) -> Iterator[U]:
    """Yield `work`'s results in the order of its inputs, of which no more are taken than threads are busy with."""
    pool = ThreadPoolExecutor(threads, "score")
    waiting: deque[Future[U]] = deque()
    try:
        for item in inputs:
            waiting.append(pool.submit(work, item))
            if len(waiting) > _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
