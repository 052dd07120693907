"""The owner's face for asyncio: the same items, and a loop that is neither held up nor left."""

from __future__ import annotations

import asyncio

import pytest
from makers.jobs import Counting, run

from glm_mlx.errors import ClosedError
from glm_mlx.generate.owner import Job, Owner

SOON_SECONDS = 10


def test_items_in_order_and_streams_side_by_side(owner: Owner) -> None:
    async def read(stop: int) -> list[int]:
        return [number async for number in owner.astream(Counting(stop))]

    async def main() -> list[list[int]]:
        return await asyncio.gather(*map(read, (100, 3, 50)))

    assert asyncio.run(main()) == [list(range(stop)) for stop in (100, 3, 50)]


def test_loop_stays_free_while_a_job_computes(owner: Owner) -> None:
    async def main() -> int:
        beats = 0

        async def read() -> None:
            async for _ in owner.astream(Counting(3, pause_seconds=0.1)):
                pass

        task = asyncio.create_task(read())
        while not task.done():
            await asyncio.sleep(0.005)
            beats += 1
        return beats

    assert asyncio.run(main()) > 10


def test_slow_reader_stops_its_job(owner: Owner) -> None:
    async def main() -> None:
        job = Counting()
        stream = owner.astream(job)
        assert await anext(stream) == 0
        await asyncio.sleep(0.1)
        assert job.given < 20
        assert [await anext(stream) for _ in range(50)] == list(range(1, 51))
        await stream.aclose()
        assert await asyncio.to_thread(job.closed.wait, SOON_SECONDS)

    asyncio.run(main())


def test_cancelled_task_cancels_the_job(owner: Owner) -> None:
    job = Counting(pause_seconds=0.01)

    async def main() -> None:
        async def read() -> None:
            async for _ in owner.astream(job):
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(job.closed.wait, SOON_SECONDS)

    asyncio.run(main())


def test_leaving_the_loop_cancels_the_job(owner: Owner) -> None:
    job = Counting()

    async def main() -> None:
        async for _ in owner.astream(job):
            break

    asyncio.run(main())
    assert job.closed.wait(SOON_SECONDS)


def test_closed_event_loop_cancels_the_job(owner: Owner) -> None:
    job = Counting(pause_seconds=0.01)
    stream = owner.astream(job)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(anext(stream))
    loop.close()
    assert job.closed.wait(SOON_SECONDS)
    assert run(owner, lambda: 1) == 1


def test_errors_and_closing_reach_the_reader(owner: Owner) -> None:
    def failing() -> Job[int]:
        yield 1
        raise KeyError("of a job")

    async def main() -> None:
        with pytest.raises(KeyError, match="of a job"):
            _ = [item async for item in owner.astream(failing)]
        stream = owner.astream(Counting(pause_seconds=0.01))
        await anext(stream)
        await asyncio.to_thread(owner.close)
        with pytest.raises(ClosedError, match="closed while"):
            _ = [item async for item in stream]
        with pytest.raises(ClosedError, match="load it again"):
            owner.astream(Counting())

    asyncio.run(main())
