"""When requests of a load go out, and how many at once."""

import asyncio
import itertools
import math
import time

import pytest

from quire.entrypoints.bench import serve
from quire.entrypoints.bench.openai_client import Reply
from quire.entrypoints.bench.workload import Ask

ASKS = [Ask(str(number), 1) for number in range(12)]


@pytest.mark.parametrize("limit", [1, 3, None])
def test_no_more_than_the_limit_are_under_way(limit: int | None) -> None:
    now = most = 0

    async def ask(one: Ask) -> Reply:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return Reply(0, prompt_tokens=int(str(one.prompt)))

    arrivals = serve.arrivals(math.inf, 0)
    replies = asyncio.run(serve.load(ask, ASKS, arrivals, limit))
    assert most == (limit or len(ASKS))
    assert [reply.prompt_tokens for reply in replies if isinstance(reply, Reply)] == list(range(12))


def test_requests_go_out_when_they_are_due() -> None:
    sent: list[float] = []

    async def ask(one: Ask) -> Reply:
        sent.append(time.perf_counter())
        return Reply(0)

    due = [0.02 * number for number in range(12)]
    started = time.perf_counter()
    asyncio.run(serve.load(ask, ASKS, iter(due), None))
    assert all(moment - started >= at for moment, at in zip(sent, due, strict=True))


def test_arrivals_are_a_poisson_process() -> None:
    assert list(itertools.islice(serve.arrivals(math.inf, 0), 5)) == [0.0] * 5
    times = list(itertools.islice(serve.arrivals(4.0, 1), 10001))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert times[0] == 0.0
    assert mean == pytest.approx(1 / 4, rel=0.05)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation == pytest.approx(mean, rel=0.05)
    assert times[:9] == list(itertools.islice(serve.arrivals(4.0, 1), 9))
