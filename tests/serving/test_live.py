"""A new version of the model, as the process that loads it sees it."""

import asyncio
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from serving.live import LiveModel
from serving.runtime import Model
from serving.settings import ServerSettings


def test_what_fails_for_want_of_memory_is_tried_again_ever_more_rarely(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ensemble.onnx"
    shutil.copy(tiny_model, path)
    model = LiveModel(ServerSettings(model=path, reload_interval=0.05))
    before, load = model.current.version, Model.load
    failed: list[float] = []

    def short(*arguments: Any) -> Model:
        if len(failed) < 5:
            failed.append(time.monotonic())
            raise MemoryError
        return load(*arguments)

    monkeypatch.setattr(Model, "load", short)
    path.write_bytes(tiny_model.read_bytes() + b"\x32\x00")  # another file: with an empty documentation

    async def follow() -> None:
        watching = asyncio.create_task(model.watch())
        async with asyncio.timeout(120):
            while model.current.version == before:
                await asyncio.sleep(0.05)
        watching.cancel()

    asyncio.run(follow())
    assert [later - earlier >= 0.05 * 2**n for n, (earlier, later) in enumerate(pairwise(failed))] == [True] * 4
    model.close()
