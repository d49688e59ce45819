"""The asynchronous engine, on a tiny model. Every `run` here is an event loop of its own."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from quire import AsyncEngine, Engine, RequestOutput, RequestOutputKind, SamplingParams
from quire.engine import worker
from quire.errors import (
    ChatTemplateError,
    EngineClosedError,
    MemoryBudgetError,
    OptionError,
    PromptError,
)
from tests.engine.conftest import SMALL

PROMPTS = ["The capital of France is", "Hello, my name is", "One", "two words and more of them"]
GREEDY = SamplingParams(temperature=0, max_tokens=12)
ENDLESS = SamplingParams(temperature=0, max_tokens=240, ignore_eos=True)
OPTIONS: dict[str, Any] = {"enforce_eager": True, "use_tqdm_on_load": False, **SMALL}


@pytest.fixture(scope="module")
def served(model_folder: Path) -> Iterator[AsyncEngine]:
    """An engine for the tests that leave it as it was."""
    engine = AsyncEngine(model_folder, **OPTIONS)
    yield engine
    engine.close()


@pytest.fixture
def doomed(model_folder: Path) -> Iterator[AsyncEngine]:
    """An engine for one test."""
    engine = AsyncEngine(model_folder, **OPTIONS)
    yield engine
    engine.close()


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, 60))


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


async def collect(outputs: AsyncIterator[RequestOutput]) -> list[RequestOutput]:
    return [output async for output in outputs]


async def last(outputs: AsyncIterator[RequestOutput]) -> RequestOutput:
    return (await collect(outputs))[-1]


def same(one: RequestOutput, other: RequestOutput) -> bool:
    return one.prompt == other.prompt and list(one.outputs) == list(other.outputs)


async def assert_idle(engine: AsyncEngine) -> None:
    """Nothing runs once the thread has done what it was asked before."""
    await engine.abort("unknown")
    stats = engine.stats()
    assert (stats.pages_in_use, stats.num_running, stats.num_waiting) == (0, 0, 0)


def test_a_crowd_gets_what_generate_gives(served: AsyncEngine, engine: Engine) -> None:
    prompts = [f"{prompt} {i}" for i in range(6) for prompt in PROMPTS]
    params = [
        GREEDY if i % 2 else SamplingParams(temperature=0.8, seed=i, max_tokens=9, n=1 + i % 3)
        for i in range(len(prompts))
    ]

    async def main() -> list[RequestOutput]:
        each = zip(prompts, params, strict=True)
        return await asyncio.gather(*(last(served.generate(p, one)) for p, one in each))

    expected = engine.generate(prompts, params, use_tqdm=False)
    for found, wanted in zip(run(main()), expected, strict=True):
        assert same(found, wanted)
        assert found.finished


def test_outputs_are_of_the_kind_asked_for(served: AsyncEngine) -> None:
    def params(kind: RequestOutputKind) -> SamplingParams:
        return SamplingParams(temperature=0, max_tokens=10, output_kind=kind)

    async def main() -> list[list[RequestOutput]]:
        return [await collect(served.generate(PROMPTS[0], params(k))) for k in RequestOutputKind]

    whole, pieces, [final] = run(main())
    assert same(whole[-1], final)
    assert len(final.outputs[0].token_ids) == 10
    assert max(len(whole), len(pieces)) <= 10
    for shorter, longer in zip(whole, whole[1:], strict=False):
        assert longer.outputs[0].text.startswith(shorter.outputs[0].text)
    assert "".join(piece.outputs[0].text for piece in pieces) == final.outputs[0].text
    assert [t for p in pieces for t in p.outputs[0].token_ids] == final.outputs[0].token_ids
    assert [piece.finished for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("kind", [RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE])
def test_a_reader_who_lags_gets_all_at_once(served: AsyncEngine, kind: RequestOutputKind) -> None:
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, output_kind=kind)
    params.logprobs = 0

    async def main() -> list[RequestOutput]:
        outputs = served.generate(PROMPTS[0], params)
        found = [await anext(outputs)]
        [stream] = served._worker._streams.values()
        while not stream.done:
            await asyncio.sleep(0.01)
        return [*found, *(await collect(outputs))]

    first, second = run(main())
    assert second.finished
    tokens, entries = second.outputs[0].token_ids, second.outputs[0].logprobs or []
    if kind is RequestOutputKind.DELTA:
        tokens = first.outputs[0].token_ids + tokens
        entries = (first.outputs[0].logprobs or []) + entries
    assert len(tokens) == len(entries) == 30
    assert all(token in entry for token, entry in zip(tokens, entries, strict=True))


def test_defaults_prompts_of_all_forms_and_chat(served: AsyncEngine, engine: Engine) -> None:
    messages = [{"role": "user", "content": "Hello"}]

    async def main() -> None:
        plain = await last(served.generate(PROMPTS[0]))
        assert len(plain.outputs[0].token_ids) <= 16
        ids = plain.prompt_token_ids
        for prompt in (ids, {"prompt_token_ids": ids}, {"prompt": PROMPTS[0]}, [PROMPTS[0]]):
            assert (await last(served.generate(prompt, GREEDY))).prompt_token_ids == ids
        answer = await last(served.chat(messages, GREEDY))
        assert same(answer, engine.chat(messages, GREEDY, use_tqdm=False)[0])
        open_turn = await last(served.chat(messages, GREEDY, add_generation_prompt=False))
        assert len(open_turn.prompt_token_ids) < len(answer.prompt_token_ids)

    run(main())


def test_abort_ends_a_generator_and_frees_pages(served: AsyncEngine) -> None:
    async def main() -> None:
        seen = []
        async for output in served.generate(PROMPTS[0], ENDLESS, "mine"):
            seen.append(output)
            if len(seen) == 3:
                assert served.stats().pages_in_use > 0
                await served.abort(["unknown", "mine"])
                assert served.stats().pages_in_use == 0
        assert seen[-1].finished
        assert seen[-1].request_id == "mine"
        assert seen[-1].outputs[0].finish_reason == "abort"
        assert len(seen[-1].outputs[0].token_ids) < 240
        await assert_idle(served)

    run(main())


def test_leaving_a_generator_aborts(served: AsyncEngine) -> None:
    async def main() -> None:
        outputs = served.generate(PROMPTS[0], ENDLESS)
        async for _ in outputs:
            break
        assert served.stats().num_running == 1
        await outputs.aclose()
        await assert_idle(served)

    run(main())


def test_cancelling_a_task_aborts_and_leaves_others_alone(served: AsyncEngine) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def endless() -> None:
            async for _ in served.generate(PROMPTS[0], ENDLESS):
                begun.set()

        task = asyncio.create_task(endless())
        await begun.wait()
        other = asyncio.create_task(last(served.generate(PROMPTS[1], GREEDY)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len((await other).outputs[0].token_ids) == 12
        await assert_idle(served)

    run(main())


def test_cancelling_before_the_first_output_aborts(served: AsyncEngine) -> None:
    async def main() -> None:
        for steps in range(12):  # of the event loop: cancelled while parsed, queued, waiting
            task = asyncio.create_task(collect(served.generate(PROMPTS[0], ENDLESS, "one")))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await assert_idle(served)

    run(main())


def test_a_loop_that_goes_away_aborts(served: AsyncEngine) -> None:
    loop = asyncio.new_event_loop()
    outputs = served.generate(PROMPTS[0], ENDLESS, "orphan")
    loop.run_until_complete(anext(outputs))
    loop.close()
    assert wait_until(lambda: served.stats().pages_in_use == 0)
    assert run(last(served.generate(PROMPTS[0], GREEDY, "orphan"))).finished


def test_two_loops_at_once(served: AsyncEngine, engine: Engine) -> None:
    found: dict[int, list[RequestOutput]] = {}

    async def main() -> list[RequestOutput]:
        return await asyncio.gather(*(last(served.generate(p, GREEDY)) for p in PROMPTS))

    def work(number: int) -> None:
        found[number] = run(main())

    threads = [threading.Thread(target=work, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = engine.generate(PROMPTS, GREEDY, use_tqdm=False)
    for outputs in found.values():
        assert all(map(same, outputs, expected))
    assert len(found) == 2


def test_an_id_is_taken_while_its_generator_runs(served: AsyncEngine) -> None:
    async def main() -> None:
        first = served.generate(PROMPTS[0], ENDLESS, "twice")
        await anext(first)
        with pytest.raises(
            OptionError, match="request_id='twice' is the id of a request that runs"
        ):
            await collect(served.generate(PROMPTS[1], GREEDY, "twice"))
        assert not (await anext(first)).finished
        await first.aclose()
        again = await last(served.generate(PROMPTS[1], GREEDY, "twice"))
        assert (again.request_id, again.outputs[0].finish_reason) == ("twice", "length")

    run(main())


@pytest.mark.parametrize(
    ("prompt", "params", "request_id", "error", "message"),
    [
        ("", GREEDY, None, PromptError, "empty"),
        (["a", "b"], GREEDY, None, PromptError, "2 prompts were given: pass one"),
        ([99999], GREEDY, None, PromptError, "token id 99999 is out of range"),
        ("a", SamplingParams(logprobs=500), None, OptionError, "logprobs=500"),
        ("a", {"temperature": 0}, None, OptionError, "must be SamplingParams"),
        ("a", GREEDY, 7, OptionError, "request_id=7 must be text"),
        ("a", GREEDY, "", OptionError, "request_id='' must be text"),
    ],
)
def test_mistakes_are_told_and_the_engine_serves_on(
    served: AsyncEngine,
    prompt: Any,
    params: Any,
    request_id: Any,
    error: type[Exception],
    message: str,
) -> None:
    async def main() -> None:
        with pytest.raises(error, match=message):
            await collect(served.generate(prompt, params, request_id))
        assert (await last(served.generate("a", GREEDY))).finished

    run(main())


def test_other_mistakes(served: AsyncEngine) -> None:
    adapter: Any = object()
    with pytest.raises(OptionError, match="enable_lora=True"):
        run(collect(served.generate("a", lora_request=adapter)))
    with pytest.raises(ChatTemplateError):
        run(collect(served.chat([{"role": "user", "content": "a"}], chat_template="/none")))


def test_what_the_queue_refuses_is_raised(
    served: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MemoryBudgetError("too long for the pool")

    with monkeypatch.context() as patch:
        patch.setattr(served._engine._running.core, "add", refuse)
        with pytest.raises(MemoryBudgetError, match="too long for the pool"):
            run(collect(served.generate("a", GREEDY)))
    assert run(last(served.generate("a", GREEDY))).finished


def test_weights_and_cache_change_between_steps(served: AsyncEngine) -> None:
    async def cached(prompt: list[int]) -> int:
        return (await last(served.generate(prompt, GREEDY))).num_cached_tokens

    async def main() -> None:
        before = await last(served.generate(PROMPTS[0], GREEDY))
        running = served.generate(PROMPTS[0], ENDLESS)
        await anext(running)
        old = dict(served.params)
        await served.update_params({name: -value for name, value in old.items()})
        changed = await last(served.generate(PROMPTS[0], GREEDY))
        assert changed.outputs[0].token_ids != before.outputs[0].token_ids
        await served.update_params(old)
        assert same(await last(served.generate(PROMPTS[0], GREEDY)), before)
        await running.aclose()
        prompt = list(range(1, 40))
        assert [await cached(prompt), await cached(prompt)] == [0, 32]
        assert await served.reset_prefix_cache()
        assert await cached(prompt) == 0

    run(main())
    assert served.get_tokenizer().decode([1]) is not None


def test_a_step_is_one_call_to_the_loop_at_most(
    served: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, put = [0], [0]
    real_put = worker.Stream.put

    def counted_put(stream: worker.Stream, item: Any) -> None:
        put[0] += 1
        real_put(stream, item)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        real = loop.call_soon_threadsafe

        def counting(callback: Any, *args: Any, **options: Any) -> Any:
            calls[0] += getattr(callback, "__func__", None) is worker.Receiver.take
            return real(callback, *args, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counting)
        params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
        await asyncio.gather(*(last(served.generate(p, params)) for p in PROMPTS * 2))

    monkeypatch.setattr(worker.Stream, "put", counted_put)
    before = served.stats().num_steps
    run(main())
    assert put[0] == 8 * 30
    assert 0 < calls[0] <= served.stats().num_steps - before + 1


def test_a_loop_that_was_busy_rests_and_takes_all_that_came_meanwhile() -> None:
    rests: list[tuple[float, Any]] = []
    taken: list[int] = []

    class Slow:
        def put(self, item: int) -> None:
            time.sleep(0.01)
            taken.append(item)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later = lambda delay, callback: rests.append((delay, callback))  # pyright: ignore[reportAttributeAccessIssue]
        receiver, stream = worker.Receiver(loop), cast(Any, Slow())
        receiver.hand([(stream, cast(Any, 0))])
        for _ in range(10):
            await asyncio.sleep(0)
        receiver.hand([(stream, cast(Any, 1))])
        receiver.hand([(stream, cast(Any, 2))])
        for _ in range(10):
            await asyncio.sleep(0)
        assert taken == [0]
        [(delay, take)] = rests
        assert delay >= 0.01
        take()
        assert taken == [0, 1, 2]

    run(main())


def test_a_loop_is_told_slice_by_slice() -> None:
    size = worker._SLICE
    told: list[tuple[int, int, int]] = []  # iteration, stream, item

    async def main() -> None:
        iteration = 0

        class Noting:
            def __init__(self, number: int) -> None:
                self.number = number

            def put(self, item: int) -> None:
                told.append((iteration, self.number, item))

        streams = [cast(Any, Noting(number)) for number in range(3 * size + 1)]
        receiver = worker.Receiver(asyncio.get_running_loop())
        for item in range(2):
            receiver.hand([(stream, cast(Any, item)) for stream in streams])
        while len(told) < 2 * len(streams):
            await asyncio.sleep(0)
            iteration += 1
            if iteration == 2:
                receiver.hand([(streams[-1], cast(Any, 2))])
        while told[-1][2] != 2:
            await asyncio.sleep(0)

    run(main())
    assert [told[-1][1:]] == [(3 * size, 2)]
    assert [one[1:] for one in told[:-1]] == [
        (stream, item) for stream in range(3 * size + 1) for item in range(2)
    ]
    streams_of = [{s for i, s, _ in told[:-1] if i == iteration} for iteration, _, _ in told]
    assert max(map(len, streams_of)) == size


def test_a_request_left_before_it_is_made_is_not(
    served: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = served._engine._maker

    def maker(*args: Any) -> Any:
        make = real(*args)

        def told(index: int, prompt: Any) -> Any:
            made.append(prompt.text)
            return make(index, prompt)

        return told

    async def main() -> None:
        released = threading.Event()
        served._preparing.submit(released.wait, 20)
        left = asyncio.create_task(last(served.generate(PROMPTS[0], GREEDY)))
        kept = asyncio.create_task(last(served.generate(PROMPTS[1], GREEDY)))
        await asyncio.sleep(0.01)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        released.set()
        assert (await kept).finished

    monkeypatch.setattr(served._engine, "_maker", maker)
    run(main())
    assert made == [PROMPTS[1]]


def test_a_request_that_ended_is_not_aborted(
    served: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    aborted: list[str] = []
    core = served._engine._running.core
    real = core.abort

    def abort(request_id: str) -> bool:
        aborted.append(request_id)
        return real(request_id)

    async def main() -> None:
        await last(served.generate("a", GREEDY, "whole"))
        left = served.generate("a", ENDLESS, "left")
        await anext(left)
        await left.aclose()
        await assert_idle(served)

    monkeypatch.setattr(core, "abort", abort)
    run(main())
    assert aborted == ["left", "unknown"]


def test_the_loop_goes_on_during_a_step(
    served: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun, released = served._engine._step, threading.Event(), threading.Event()
    in_time: list[bool] = []

    def step() -> None:
        begun.set()
        in_time.append(released.wait(20))
        real()

    async def main() -> None:
        first = asyncio.create_task(last(served.generate(PROMPTS[0], GREEDY)))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        assert served.stats().num_waiting == 1
        second = asyncio.create_task(last(served.generate(PROMPTS[1], GREEDY)))
        third = asyncio.create_task(last(served.generate(PROMPTS[2], ENDLESS)))
        await asyncio.sleep(0.02)
        third.cancel()
        with pytest.raises(asyncio.CancelledError):
            await third
        released.set()
        assert (await first).finished
        assert (await second).finished

    while served._engine._running.core.has_work:  # a last step for what ran before
        time.sleep(0.001)
    monkeypatch.setattr(served._engine, "_step", step)
    run(main())
    assert all(in_time)


def test_it_sleeps_while_there_is_no_work(
    served: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[bool] = []
    real = served._worker._obey

    def counting(*, wait: bool) -> None:
        rounds.append(wait)
        real(wait=wait)

    monkeypatch.setattr(served._worker, "_obey", counting)

    def quiet() -> bool:
        before = len(rounds)
        time.sleep(0.1)
        return len(rounds) == before > 0

    run(last(served.generate("a", GREEDY)))
    assert wait_until(quiet)


def test_an_error_reaches_everybody(doomed: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = RuntimeError("the device is gone")

    async def main() -> None:
        generators = [doomed.generate(prompt, ENDLESS) for prompt in PROMPTS]
        for generator in generators:
            await anext(generator)
        assert not doomed.errored

        def fail(*_: object, **__: object) -> None:
            raise failure

        monkeypatch.setattr(doomed._engine._running.replicas[0].runner, "run", fail)
        results = await asyncio.gather(*map(collect, generators), return_exceptions=True)
        for result in results:
            assert isinstance(result, EngineClosedError)
            assert "the device is gone" in str(result)
            assert result.__cause__ is failure
        assert len({id(result) for result in results}) == len(PROMPTS)
        monkeypatch.undo()
        with pytest.raises(EngineClosedError, match="the device is gone"):
            await collect(doomed.generate("a", GREEDY))
        with pytest.raises(EngineClosedError, match="the device is gone"):
            await doomed.abort("unknown")

    run(main())
    assert doomed.errored
    assert not doomed.is_running
    assert isinstance(doomed.dead_error, EngineClosedError)
    assert doomed.dead_error.__cause__ is failure
    doomed.close()
    assert doomed.errored


def test_what_is_asked_during_the_last_step_fails_too(
    doomed: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, released = threading.Event(), threading.Event()

    def fail(*_: object, **__: object) -> None:
        begun.set()
        assert released.wait(20)
        raise RuntimeError("the device is gone")

    async def main() -> None:
        monkeypatch.setattr(doomed._engine._running.replicas[0].runner, "run", fail)
        first = asyncio.create_task(last(doomed.generate("a", GREEDY)))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        first.cancel()
        second = asyncio.create_task(last(doomed.generate("a", GREEDY)))
        while doomed._worker._inbox.qsize() < 2:
            await asyncio.sleep(0.001)
        released.set()
        with pytest.raises(EngineClosedError, match="the device is gone"):
            await second

    run(main())


def test_close_wakes_those_who_wait(doomed: AsyncEngine) -> None:
    async def main() -> None:
        generators = [doomed.generate(prompt, ENDLESS) for prompt in PROMPTS]
        for generator in generators:
            await anext(generator)
        waiting = [asyncio.create_task(collect(generator)) for generator in generators]
        await asyncio.to_thread(doomed.close)
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, EngineClosedError)
            assert "closed" in str(result)
        with pytest.raises(EngineClosedError, match="was closed"):
            await collect(doomed.generate("a", GREEDY))

    run(main())
    assert not doomed.is_running
    assert not doomed.errored
    assert doomed.dead_error is None
    with pytest.raises(EngineClosedError, match="was closed"):
        doomed.stats()
    doomed.close()


def test_a_with_block_closes(model_folder: Path) -> None:
    async def main() -> AsyncEngine:
        async with AsyncEngine(model_folder, **OPTIONS) as engine:
            assert engine.is_running
            assert (await last(engine.generate("a", GREEDY))).finished
        return engine

    engine = run(main())
    assert not engine.is_running
    assert not engine._worker._thread.is_alive()


def test_garbage_collection_closes(model_folder: Path) -> None:
    engine = AsyncEngine(model_folder, **OPTIONS)
    run(last(engine.generate("a", GREEDY)))
    thread, gone = engine._worker._thread, weakref.ref(engine._engine)
    del engine
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()
    gc.collect()
    assert gone() is None
