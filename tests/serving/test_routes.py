"""Where an answer is made: large ones off the event loop."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

from serving.classifier import Classifier
from serving.routes import _MANY, _built


@pytest.mark.parametrize(("predictions", "on_loop"), [(5, True), (_MANY, True), (_MANY + 1, False)])
def test_a_large_answer_holds_nobody_up(predictions: int, on_loop: bool) -> None:
    async def made_by() -> int:
        with ThreadPoolExecutor(1) as pool:

            async def in_thread(work: Any, *arguments: object) -> Any:
                return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)

            classifier = cast("Classifier", SimpleNamespace(in_thread=in_thread))
            return await _built(classifier, predictions, threading.get_ident)

    assert (asyncio.run(made_by()) == threading.get_ident()) == on_loop
