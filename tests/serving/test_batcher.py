"""How waiting images become batches, on a model that only notes what it is asked for."""

import asyncio
import threading
from typing import Any, cast

import numpy as np

from serving.batcher import Batcher, Result
from serving.runtime import Answer, Model
from tailstack.images import Pixels

CLASSES, LEARNERS = 3, 2
PATIENCE_S = 600.0


class Noting:
    """Answers with the image's first pixel as the most probable class."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, bool]] = []
        self.gate = threading.Event()
        self.gate.set()

    def classify(self, images: Pixels, *, alone: bool) -> Answer:
        self.batches.append((len(images), alone))
        self.gate.wait(60)
        probabilities = np.eye(CLASSES, dtype=np.float32)[images[:, 0, 0, 0]]
        return Answer(probabilities, np.repeat(probabilities[:, None], LEARNERS, axis=1))


def image(label: int) -> Pixels:
    return np.full((2, 2, 3), label, dtype=np.uint8)


def submit(batcher: Batcher, model: object, *labels: int) -> "list[asyncio.Future[Result]]":
    return batcher.submit(cast("Model", model), *map(image, labels))


def test_one_image_on_an_idle_server_is_run_at_once_with_the_cores_to_itself() -> None:
    async def main() -> None:
        model, batcher = Noting(), Batcher(16, 4, PATIENCE_S)
        [waiting] = submit(batcher, model, 2)
        result = await waiting
        assert model.batches == [(1, True)]
        assert (int(result.order[0]), result.choices) == (2, [2, 2])

    asyncio.run(main())


def test_an_image_beside_which_another_one_comes_has_not_the_cores_to_itself() -> None:
    async def main() -> None:
        model, batcher = Noting(), Batcher(16, 4, PATIENCE_S)
        with batcher.expect():
            # The block's own image: nothing else is on its way.
            await asyncio.gather(*submit(batcher, model, 0))
            with batcher.expect():
                await asyncio.gather(*submit(batcher, model, 0))
        assert model.batches == [(1, True), (1, False)]

    asyncio.run(main())


def test_an_image_is_run_in_the_callers_thread_with_the_cores_to_itself() -> None:
    model, batcher = Noting(), Batcher(16, 4, PATIENCE_S)
    assert batcher.idle
    result = batcher.run_here(cast("Model", model), image(2))
    assert (int(result.order[0]), result.choices, model.batches) == (2, [2, 2], [(1, True)])
    assert batcher.idle


def test_a_batcher_is_idle_when_nothing_runs_waits_or_comes() -> None:
    async def main() -> None:
        model, batcher = Noting(), Batcher(16, 1, PATIENCE_S)
        with batcher.expect():
            assert not batcher.idle
        model.gate.clear()
        [waiting] = submit(batcher, model, 2)
        assert not batcher.idle
        waiting.cancel()
        while not model.batches:
            await asyncio.sleep(0.001)
        # Nobody waits for it any more, but its thread is at it.
        assert not batcher.idle
        model.gate.set()
        while not batcher.idle:
            await asyncio.sleep(0.001)

    asyncio.run(main())


def test_a_learner_that_a_cascade_did_not_ask_has_no_choice() -> None:
    class Cascade(Noting):
        def classify(self, images: Pixels, *, alone: bool) -> Answer:
            answer = super().classify(images, alone=alone)
            answer.votes[images[:, 0, 0, 0] == 1, 1] = 0
            return answer

    async def main() -> None:
        batcher = Batcher(16, 1, PATIENCE_S)
        results = await asyncio.gather(*submit(batcher, Cascade(), 1, 2))
        assert [result.choices for result in results] == [[1, None], [2, 2]]

    asyncio.run(main())


def test_an_image_waits_for_those_that_are_being_decoded() -> None:
    async def main() -> None:
        model, batcher = Noting(), Batcher(16, 1, PATIENCE_S)
        with batcher.expect(), batcher.expect():
            waiting = [*submit(batcher, model, 0), *submit(batcher, model, 1)]
            assert model.batches == []
        results = await asyncio.gather(*waiting)
        assert model.batches == [(2, True)]
        assert [int(result.order[0]) for result in results] == [0, 1]

    asyncio.run(main())


def test_an_image_does_not_wait_for_ever() -> None:
    async def main() -> None:
        model, batcher = Noting(), Batcher(16, 1, patience=0.001)
        with batcher.expect():
            await asyncio.wait_for(*submit(batcher, model, 1), timeout=60)
            assert model.batches == [(1, True)]

    asyncio.run(main())


def test_slots_share_what_waits() -> None:
    async def main() -> None:
        model, batcher = Noting(), Batcher(16, 2, PATIENCE_S)
        model.gate.clear()
        waiting = submit(batcher, model, *(number % CLASSES for number in range(8)))
        model.gate.set()
        results = await asyncio.gather(*waiting)
        assert sorted(model.batches) == [(4, False), (4, False)]
        assert [int(result.order[0]) for result in results] == [number % CLASSES for number in range(8)]

    asyncio.run(main())


def test_a_batch_has_a_largest_size_and_leaves_out_whom_nobody_waits_for() -> None:
    async def main() -> None:
        model, batcher = Noting(), Batcher(3, 1, PATIENCE_S)
        model.gate.clear()
        first, gone, *waiting = [*submit(batcher, model, 0), *submit(batcher, model, *[1] * 6)]
        gone.cancel()
        model.gate.set()
        await asyncio.gather(first, *waiting)
        assert [size for size, _ in model.batches] == [1, 3, 2]

    asyncio.run(main())


def test_images_of_two_models_share_no_batch() -> None:
    async def main() -> None:
        old, new, batcher = Noting(), Noting(), Batcher(16, 1, PATIENCE_S)
        with batcher.expect():
            waiting = [*submit(batcher, old, 0, 0), *submit(batcher, new, 0)]
        await asyncio.gather(*waiting)
        assert ([size for size, _ in old.batches], [size for size, _ in new.batches]) == ([2], [1])

    asyncio.run(main())


def test_what_goes_wrong_is_told_to_each_of_the_batch() -> None:
    class Broken:
        def classify(self, images: Pixels, *, alone: bool) -> Any:
            raise RuntimeError(f"no {len(images)} images")

    async def main() -> None:
        broken, batcher = Broken(), Batcher(16, 1, PATIENCE_S)
        errors = await asyncio.gather(*submit(batcher, broken, 0, 0), return_exceptions=True)
        assert [str(error) for error in errors] == ["no 2 images", "no 2 images"]
        # Its slot is free again.
        await asyncio.gather(*submit(batcher, Noting(), 0))

    asyncio.run(main())
