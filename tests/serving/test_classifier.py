"""Where an image is run: on the event loop where it is alone and quick, else in a thread."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from serving.body import Upload
from serving.classifier import QUICK_BYTES, QUICK_S, Classifier
from serving.errors import RequestError
from serving.live import LiveModel
from serving.runtime import Answer, Model
from serving.settings import ServerSettings
from tailstack.images import Pixels
from tests.serving.conftest import encoded


class Noting:
    """Notes in which thread it is asked."""

    artifact = SimpleNamespace(image_size=(8, 8), classes=["a", "b"])
    slots = 2

    def __init__(self, seconds: float = QUICK_S) -> None:
        self.seconds = seconds
        self.threads: list[threading.Thread] = []

    def classify(self, images: Pixels, *, alone: bool) -> Answer:
        self.threads.append(threading.current_thread())
        probabilities = np.tile(np.array([0.25, 0.75], dtype=np.float32), (len(images), 1))
        return Answer(probabilities, probabilities[:, None])

    @property
    def on_loop(self) -> list[bool]:
        return [thread is threading.main_thread() for thread in self.threads]


@asynccontextmanager
async def classifier_of(model: Noting) -> AsyncIterator[Classifier]:
    classifier = Classifier(ServerSettings(), cast("LiveModel", SimpleNamespace(current=model)))
    try:
        yield classifier
    finally:
        classifier.close()


async def ask(classifier: Classifier, model: Noting, data: bytes, body_bytes: int = 0) -> Any:
    with classifier.admit(1):
        return await classifier.classify_image(
            cast("Model", model), lambda: ("given", Upload("", data)), body_bytes or len(data)
        )


async def ask_once(model: Noting, data: bytes, body_bytes: int = 0) -> Any:
    async with classifier_of(model) as classifier:
        return await ask(classifier, model, data, body_bytes)


@pytest.mark.parametrize("data", [encoded("JPEG"), encoded("PNG")])
def test_a_lone_quick_image_is_run_on_the_loop(data: bytes) -> None:
    model = Noting()
    given, result = asyncio.run(ask_once(model, data))
    assert (given, result.order.tolist(), model.on_loop) == ("given", [1, 0], [True])


@pytest.mark.parametrize(
    ("data", "body_bytes", "seconds"),
    [
        (encoded("WEBP"), 0, QUICK_S),
        (encoded("PNG", (1000, 501)), 1, QUICK_S),
        (encoded("PNG"), QUICK_BYTES + 1, QUICK_S),
        (encoded("PNG"), 0, 1.01 * QUICK_S),
    ],
)
def test_what_may_take_longer_is_run_in_a_thread(data: bytes, body_bytes: int, seconds: float) -> None:
    model = Noting(seconds)
    given, result = asyncio.run(ask_once(model, data, body_bytes))
    assert (given, result.order.tolist(), model.on_loop) == ("given", [1, 0], [False])


def test_images_that_come_at_the_same_moment_are_run_in_threads() -> None:
    async def main() -> list[bool]:
        model = Noting()
        async with classifier_of(model) as classifier:
            await asyncio.gather(*(ask(classifier, model, encoded("PNG")) for _ in range(3)))
            assert not any(model.on_loop)
            model.threads.clear()
            await ask(classifier, model, encoded("PNG"))
        return model.on_loop

    assert asyncio.run(main()) == [True]


def test_a_broken_image_is_refused_and_leaves_the_next_one_alone() -> None:
    async def main() -> list[bool]:
        model = Noting()
        async with classifier_of(model) as classifier:
            for data in (encoded("PNG")[:200], encoded("JPEG")[:200]):
                with pytest.raises(RequestError):
                    await ask(classifier, model, data)
            await ask(classifier, model, encoded("PNG"))
        return model.on_loop

    assert asyncio.run(main()) == [True]


def test_a_body_is_read_once_wherever_its_image_is_run() -> None:
    async def main(data: bytes) -> int:
        model, reads = Noting(), []

        def read() -> tuple[None, Upload]:
            reads.append(data)
            return None, Upload("", data)

        async with classifier_of(model) as classifier:
            with classifier.admit(1):
                await classifier.classify_image(cast("Model", model), read, len(data))
        return len(reads)

    assert [asyncio.run(main(encoded(kind))) for kind in ("PNG", "WEBP")] == [1, 1]
