"""`quire bench serve`: load for an OpenAI-compatible server, and how it bears it."""

import argparse
import asyncio
import collections
import itertools
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from random import Random
from typing import Any

from ... import QuireError, SamplingParams
from ..arguments import sampling_params
from .openai_client import Client, Reply, RequestFailedError
from .report import NO_MACHINE, percentile, record, rounded, say
from .workload import (
    SAMPLING,
    Ask,
    lengths,
    random_ids,
    random_words,
    read_dataset,
    settle,
    texts_only,
)

PATHS = {"completions": "/completions", "chat": "/chat/completions"}
FAILURES = (RequestFailedError, OSError)  # OSError has TimeoutError under it
Outcome = Reply | RequestFailedError | OSError


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The record of one load. Raises QuireError where the server answers nothing at all."""
    settle(args)
    SamplingParams(**sampling_params(args, SAMPLING))
    asks = _asks(args)
    key = args.api_key or os.environ.get("OPENAI_API_KEY")
    client = Client(args.base_url, key, args.timeout)
    seconds, outcomes = asyncio.run(_measure(args, client, asks))
    replies = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
    errors = _errors(outcomes)
    if not replies:
        raise QuireError(f"{args.base_url} answered none of {len(asks)} requests: {errors}.")
    figures = _figures(replies, seconds)
    return record(args, NO_MACHINE, {**figures, "failed": sum(errors.values()), "errors": errors})


def _asks(args: argparse.Namespace) -> list[Ask]:
    chat = args.endpoint == "chat"
    if args.dataset is not None:
        asks = read_dataset(args.dataset, args.output_len, args.num_prompts)
        if chat:
            texts_only(asks)
        return asks
    if chat:
        return random_words(args.num_prompts, lengths(args), args.seed)
    return random_ids(args.num_prompts, lengths(args), args.vocab_size, args.seed)


async def _measure(
    args: argparse.Namespace, client: Client, asks: Sequence[Ask]
) -> tuple[float, list[Outcome]]:
    """Seconds from the first request to the last answer, and what became of each request.

    Sets `args.model` where it was not given.
    """
    await _try_once(args, client)

    async def ask(one: Ask) -> Outcome:
        try:
            return await client.stream(PATHS[args.endpoint], _body(args, one))
        except FAILURES as error:
            return error

    say(f"{len(asks)} requests to {args.model} at {args.base_url}")
    started = time.perf_counter()
    outcomes = await load(ask, asks, arrivals(args.request_rate, args.seed), args.max_concurrency)
    return time.perf_counter() - started, outcomes


async def _try_once(args: argparse.Namespace, client: Client) -> None:
    """One short request: a mistake is told before the load, and nothing starts cold."""
    try:
        if args.model is None:
            args.model = await client.first_model()
        await client.stream(PATHS[args.endpoint], _body(args, Ask("Hello", 1)))
    except FAILURES as error:
        raise QuireError(
            f"a first request to {args.base_url} failed ({_told(error)}). Start a server "
            "there, or give another --base-url, --model, --endpoint or --api-key."
        ) from error


def _body(args: argparse.Namespace, ask: Ask) -> dict[str, Any]:
    if args.endpoint == "chat":
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": ask.prompt}]}
    else:
        asked = {"prompt": ask.prompt}
    return {
        "model": args.model,
        **asked,
        "max_tokens": ask.output_len,
        **sampling_params(args, SAMPLING),
        **({"ignore_eos": True} if args.ignore_eos else {}),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """When requests come, in seconds from the first: a Poisson process of `rate` a second."""
    random = Random(seed)
    gaps = (random.expovariate(rate) for _ in itertools.count())
    return itertools.accumulate(gaps, initial=0.0)


async def load(
    ask: Callable[[Ask], Awaitable[Outcome]],
    asks: Sequence[Ask],
    arrivals: Iterator[float],
    max_concurrency: int | None,
) -> list[Outcome]:
    """Asks each at its time; those above `max_concurrency` wait until another is answered."""
    gate = asyncio.Semaphore(max_concurrency or len(asks))

    async def one(item: Ask) -> Outcome:
        async with gate:
            return await ask(item)

    started = time.perf_counter()
    tasks: list[asyncio.Task[Outcome]] = []
    async with asyncio.TaskGroup() as group:
        for item, due in zip(asks, arrivals, strict=False):
            await asyncio.sleep(started + due - time.perf_counter())
            tasks.append(group.create_task(one(item)))
    return [task.result() for task in tasks]


def _kind(error: RequestFailedError | OSError) -> str:
    if isinstance(error, RequestFailedError):
        return error.kind
    return "timeout" if isinstance(error, TimeoutError) else type(error).__name__


def _told(error: RequestFailedError | OSError) -> str:
    return str(error) if isinstance(error, RequestFailedError) else f"{_kind(error)}: {error}"


def _errors(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many failures there were of each kind; the first of each is told."""
    counts: collections.Counter[str] = collections.Counter()
    for outcome in outcomes:
        if not isinstance(outcome, Reply):
            kind = _kind(outcome)
            if kind not in counts:
                say(f"a request failed: {_told(outcome)}")
            counts[kind] += 1
    return dict(counts)


def _figures(replies: Sequence[Reply], seconds: float) -> dict[str, Any]:
    prompts = [reply.prompt_tokens for reply in replies]
    known = [count for count in prompts if count is not None]
    output_tokens = sum(reply.output_tokens for reply in replies)
    first = [reply.arrivals[0] - reply.sent for reply in replies if reply.arrivals]
    gaps = [b - a for reply in replies for a, b in itertools.pairwise(reply.arrivals)]
    return {
        "requests": len(replies),
        "prompt_tokens": sum(known) if len(known) == len(prompts) else None,
        "output_tokens": output_tokens,
        "duration_s": rounded(seconds),
        "requests_per_s": rounded(len(replies) / seconds),
        "output_tokens_per_s": rounded(output_tokens / seconds),
        "ttft_ms": _spread(first),
        "itl_ms": _spread(gaps),
    }


def _spread(seconds: Sequence[float]) -> dict[str, float | None]:
    """In milliseconds; None for all where there is nothing."""
    if not seconds:
        return {"mean": None, "median": None, "p99": None}
    found = {
        "mean": statistics.fmean(seconds),
        "median": statistics.median(seconds),
        "p99": percentile(seconds, 99),
    }
    return {name: rounded(value * 1e3) for name, value in found.items()}
