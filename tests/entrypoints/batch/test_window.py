"""Rows side by side, answers in order, within limits."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from quire.entrypoints.batch.rows import Answer, Row
from quire.entrypoints.batch.window import Limits, Window

WIDE = Limits(asked=64, held=256)


async def rows(count: int, size: int = 1) -> AsyncGenerator[Row, None]:
    for number in range(count):
        yield Row({"number": number}, size)


def at_once(number: int) -> Awaitable[None]:
    return asyncio.sleep(0)


def answer_to(row: Row) -> Answer:
    return Answer(str(row.fields["number"]).encode(), failed=False)


class Asked:
    """Answers when told to, and knows how many rows it was asked at once."""

    def __init__(self, delay: Callable[[int], Awaitable[object]]) -> None:
        self._delay = delay
        self.now = self.most = 0
        self.begun: list[int] = []
        self.cancelled: list[int] = []

    async def __call__(self, row: Row) -> Answer:
        number = row.fields["number"]
        self.now += 1
        self.most = max(self.most, self.now)
        self.begun.append(number)
        try:
            await self._delay(number)
            return answer_to(row)
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        finally:
            self.now -= 1


async def numbers(window: Window, given: AsyncGenerator[Row, None]) -> list[list[int]]:
    return [[int(one.line) for one in ready] async for ready in window.in_order(given)]


@pytest.mark.parametrize("seed", range(20))
def test_answers_come_once_and_in_order_and_limits_hold(seed: int) -> None:
    choose = random.Random(seed)
    limits = Limits(choose.randint(1, 8), choose.randint(1, 16), choose.choice([1, 30, 1000]))
    turns = [choose.choice([0, 0, 1, 2, 30]) for _ in range(100)]

    async def delay(number: int) -> None:
        for _ in range(turns[number]):
            await asyncio.sleep(0)

    asked = Asked(delay)
    found = asyncio.run(numbers(Window(asked, limits), rows(100, size=10)))
    assert [one for ready in found for one in ready] == list(range(100))
    assert all(found)
    assert asked.begun == list(range(100))
    assert asked.most <= min(limits.asked, limits.held, max(-(-limits.held_bytes // 10), 1))


def test_no_rows_give_no_answers() -> None:
    assert asyncio.run(numbers(Window(Asked(at_once), WIDE), rows(0))) == []


def test_a_slow_row_does_not_hold_up_asking_but_holding() -> None:
    limits = Limits(asked=4, held=10)

    async def main() -> None:
        gate = asyncio.Event()
        asked = Asked(lambda number: gate.wait() if number == 0 else at_once(number))
        finding = asyncio.create_task(numbers(Window(asked, limits), rows(30)))
        for _ in range(100):
            await asyncio.sleep(0)
        assert asked.begun == list(range(10))
        assert asked.now == 1
        gate.set()
        found = await finding
        assert found[0] == list(range(10))
        assert sum(map(len, found)) == 30

    asyncio.run(main())


def test_a_row_larger_than_all_limits_goes_through() -> None:
    limits = Limits(asked=4, held=10, held_bytes=10)
    found = asyncio.run(numbers(Window(Asked(at_once), limits), rows(3, size=1000)))
    assert found == [[0], [1], [2]]


def test_an_error_comes_in_its_turn_and_ends_the_others() -> None:
    async def fail(number: int) -> None:
        if number == 5:
            raise RuntimeError("the engine died")
        if number > 5:
            await asyncio.Event().wait()

    async def main() -> None:
        asked = Asked(fail)
        found = Window(asked, WIDE).in_order(rows(20))
        assert [int(one.line) for one in await anext(found)] == [0, 1, 2, 3, 4]
        with pytest.raises(RuntimeError, match="the engine died"):
            await anext(found)
        assert asked.cancelled == list(range(6, 20))

    asyncio.run(main())


def test_cancelling_ends_what_is_asked() -> None:
    async def main() -> None:
        asked = Asked(lambda number: asyncio.Event().wait())
        finding = asyncio.create_task(numbers(Window(asked, WIDE), rows(5)))
        for _ in range(10):
            await asyncio.sleep(0)
        finding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await finding
        assert asked.cancelled == [0, 1, 2, 3, 4]

    asyncio.run(main())
