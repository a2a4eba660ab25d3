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
from serving.runtime import CPU, Model
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
        self._batcher = Batcher(settings.max_batch, slots(live.current))
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

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Give up on a block that takes too long.

        Raises:
            RequestError: it did.
        """
        try:
            async with asyncio.timeout(self._settings.timeout):
                yield
        except TimeoutError as error:
            METRICS.rejected.labels("deadline").inc()
            raise RequestError(
                HTTPStatus.GATEWAY_TIMEOUT, "too_slow", f"no answer within {self._settings.timeout:g} s"
            ) from error

    async def in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Run what takes the processor's time off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work, *arguments)

    async def classify_pixels(self, model: Model, pixels: Pixels) -> Result:
        """Run one image, uint8 `[height, width, 3]` of the model's size, in whatever batch it gets into."""
        result = await self._batcher.submit(model, pixels)
        _record(model, result)
        return result

    async def classify_image(self, model: Model, upload: Upload) -> Result:
        """Decode and run one image.

        Raises:
            RequestError: the image can't be decoded.
        """
        pixels = await self.in_thread(self.decode, model, upload)
        return await self.classify_pixels(model, pixels)

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


def slots(model: Model) -> int:
    """Return how many inferences run at a time: two keep a CPU's cores busy between them, a GPU is one queue."""
    return 2 if model.provider == CPU else 1


def _record(model: Model, result: Result) -> None:
    """Count what shows drift: classes, confidence, and learners at odds with the ensemble."""
    first = int(result.probabilities.argmax())
    METRICS.predictions.labels(model.artifact.classes[first]).inc()
    METRICS.confidence.observe(float(result.probabilities[first]))
    if (result.votes.argmax(axis=1) != first).any():
        METRICS.disagreements.inc()
