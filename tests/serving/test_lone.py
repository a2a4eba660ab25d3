"""The thread that runs one piece of work at a time."""

import asyncio
import threading

import pytest

from serving.lone import LoneThread


def test_results_and_errors_reach_whoever_waits_and_the_thread_is_always_the_same() -> None:
    async def main() -> None:
        lone, done = LoneThread(), []
        names = [await lone.run(threading.current_thread, lambda: done.append(1)) for _ in range(3)]
        assert len(set(names)) == 1
        assert names[0] is not threading.current_thread()
        with pytest.raises(ZeroDivisionError):
            await lone.run(lambda: 1 // 0, lambda: done.append(1))
        assert await lone.run(lambda: 7, lambda: done.append(1)) == 7
        assert len(done) == 5
        lone.close()

    asyncio.run(main())


def test_work_that_nobody_waits_for_any_more_is_done_before_what_follows_it() -> None:
    async def main() -> None:
        lone, gate, order = LoneThread(), threading.Event(), []
        first = asyncio.ensure_future(lone.run(lambda: gate.wait(60), lambda: order.append("first")))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert order == []
        second = lone.run(lambda: "answer", lambda: order.append("second"))
        gate.set()
        assert await second == "answer"
        assert order == ["first", "second"]
        lone.close()

    asyncio.run(main())


def test_it_ends_when_it_is_closed_also_after_its_loop() -> None:
    gate, threads = threading.Event(), []

    async def main() -> LoneThread:
        lone = LoneThread()
        threads.append(await lone.run(threading.current_thread, lambda: None))
        lone.run(lambda: gate.wait(60), lambda: None)
        return lone

    lone = asyncio.run(main())
    gate.set()
    lone.close()
    threads[0].join(60)
    assert not threads[0].is_alive()
