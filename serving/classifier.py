"""From encoded images to results: admission, decoding in threads, inference in batches, and a deadline."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import TypeVar

from serving.batcher import Batcher, Result
from serving.body import Upload
from serving.decoding import decode_safely
from serving.errors import RequestError, overloaded
from serving.live import LiveModel
from serving.metrics import METRICS
from serving.runtime import Model
from serving.settings import ServerSettings
from tailstack.images import ImageError, Pixels

T = TypeVar("T")


class Classifier:
    """What every route that classifies shares."""

    def __init__(self, settings: ServerSettings, live: LiveModel) -> None:
        self._settings = settings
        self._live = live
        self._admitted = 0
        self._decoders = ThreadPoolExecutor(max(2, len(os.sched_getaffinity(0)) // settings.workers), "decode")
        self._batcher = Batcher(settings.max_batch, live.current.slots)
        METRICS.queue_capacity.set(settings.max_queue)

    @property
    def model(self) -> Model:
        """The model that answers now. A request keeps the one it began with."""
        return self._live.current

    def check_room(self, images: int) -> None:
        """Pass while there is room for `images`. Asked before a body is received, it tells a client at once.

        Raises:
            RequestError: there is none.
        """
        if self._admitted + images > self._settings.max_queue:
            METRICS.rejected.labels("queue_full").inc()
            raise overloaded(f"{self._admitted} images are waiting")

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Hold room for `images` until the block ends.

        Raises:
            RequestError: there is none.
        """
        self.check_room(images)
        self._count(images)
        try:
            yield
        finally:
            self._count(-images)

    def due(self) -> float:
        """Return when what comes in now has to be answered, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self._settings.timeout

    @asynccontextmanager
    async def deadline(self, due: float | None = None) -> AsyncIterator[None]:
        """Give up on a block that takes too long.

        Args:
            due: what `due` returned when the request came in; None counts from now.

        Raises:
            RequestError: it did.
        """
        try:
            async with asyncio.timeout_at(self.due() if due is None else due):
                yield
        except TimeoutError as error:
            METRICS.rejected.labels("deadline").inc()
            raise RequestError(
                HTTPStatus.GATEWAY_TIMEOUT, "too_slow", f"no answer within {self._settings.timeout:g} s"
            ) from error

    async def in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Run what takes the processor's time off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work, *arguments)

    async def classify_image(self, model: Model, prepare: Callable[[], tuple[T, Pixels]]) -> tuple[T, Result]:
        """Prepare one image in a thread, and run it.

        Args:
            model: what runs it.
            prepare: returns what goes with the result, and the image, uint8 `[height, width, 3]` of the model's size.

        Raises:
            RequestError: `prepare` did.
        """
        if self._batcher.idle:
            beside, result = await self._batcher.run_at_once(model, prepare)
        else:
            with self._batcher.expect():
                beside, pixels = await self.in_thread(prepare)
                [answer] = self._batcher.submit(model, pixels)
            result = await answer
        _record(model, result)
        return beside, result

    async def classify_pixels(self, model: Model, images: Pixels) -> list[Result]:
        """Run images, uint8 `[images, height, width, 3]` of the model's size."""
        results = await asyncio.gather(*self._batcher.submit(model, *images))
        for result in results:
            _record(model, result)
        return results

    def decode(self, model: Model, upload: Upload) -> Pixels:
        """Decode one image to the model's size.

        Raises:
            RequestError: it can't be.
        """
        start = time.perf_counter()
        try:
            return decode_safely(upload.data, model.artifact.image_size, self._settings.max_pixels)
        except ImageError as error:
            raise RequestError.of_image(error, upload.name) from error
        finally:
            METRICS.decode_seconds.observe(time.perf_counter() - start)

    def close(self) -> None:
        """End the threads."""
        self._decoders.shutdown(wait=False)
        self._batcher.close()

    def _count(self, images: int) -> None:
        self._admitted += images
        METRICS.queue_images.set(self._admitted)


def _record(model: Model, result: Result) -> None:
    """Count what shows drift: classes, confidence, and learners at odds with the ensemble."""
    first = int(result.order[0])
    METRICS.predictions.labels(model.artifact.classes[first]).inc()
    METRICS.confidence.observe(float(result.probabilities[first]))
    if not {first, None}.issuperset(result.choices):
        METRICS.disagreements.inc()
