"""`AsyncEngine`: the engine for programs built on asyncio."""

import asyncio
import dataclasses
import uuid
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import jax

from ..errors import EngineClosedError, OptionError, PromptError
from ..lora.request import LoRARequest
from . import adapters, beam_search
from .adapter_arrays import LoadedAdapter
from .chat_media import has_media_parts
from .engine import Engine
from .options import EngineOptions
from .outputs import BeamSearchOutput, RequestOutput
from .prompts import Prompt, has_media
from .request import Request
from .sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from .stats import EngineStats
from .worker import Stream, Worker

T = TypeVar("T")
_MOST_READERS = 32
"""Prompts that wait for pictures at once; a thread is made when it is needed."""


class AsyncEngine:
    """An engine for asyncio: any number of coroutines generate at once, on one event loop or many.

    A thread of its own steps the engine while there is work and sleeps while there is none. Use it
    with `async with`, or call `close`; garbage collection and the end of the program close it too.
    """

    def __init__(self, model: str | Path | None = None, **options: Any) -> None:
        """Loads a model; arguments and errors are those of `Engine`."""
        self._engine = Engine(model, **options)
        self._worker = Worker(self._engine)
        # One thread, so that requests are made in the order they were asked for.
        self._preparing = ThreadPoolExecutor(1, "quire-prepare")
        self._reading = ThreadPoolExecutor(_MOST_READERS, "quire-read")
        """For what waits for pictures."""
        self._finalizer = weakref.finalize(self, self._worker.close)

    def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Completes one prompt; an asynchronous generator of its outputs.

        Leaving it early, or cancelling the task it runs in, aborts the request.

        Args:
            prompt: text, token ids or a dict, as for `Engine.generate`.
            sampling_params: None takes the model's defaults. Its `output_kind` says what an output
                holds: all so far, what is new, or everything at the end. One that comes before the
                last was taken stands for both.
            request_id: a name for `abort`, unlike that of any request that runs; None makes one up.
            priority: lower goes first, under `scheduling_policy="priority"`.
            lora_request: the adapter to complete it with; it is loaded beside the other requests.

        Raises, from the first step of the generator on:
            PromptError, OptionError, AdapterError, MemoryBudgetError: nothing was queued; the
                engine serves on.
            EngineClosedError: the engine was closed, or died of an error, before or meanwhile.
        """

        def parse() -> list[Prompt]:
            return self._engine._running.prompts.read(prompt).all()

        return self._outputs(
            parse, sampling_params, request_id, priority, lora_request, sees=has_media(prompt)
        )

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
        **template: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """`generate` for one conversation; `template` as the keywords of `Engine.chat`."""

        def parse() -> list[Prompt]:
            return self._engine._chat_prompts(messages, **template).all()

        sees = has_media_parts(messages)
        return self._outputs(parse, sampling_params, request_id, priority, lora_request, sees=sees)

    async def chat_prompt(self, messages: Sequence[Any], **template: Any) -> dict[str, Any]:
        """One conversation as a prompt for `generate`: its text, its token ids and its pictures.

        `template` as the keywords of `Engine.chat`; raises as it does.
        """

        def render() -> list[Prompt]:
            return self._engine._chat_prompts(messages, **template).all()

        waits = has_media_parts(messages)
        [prompt] = await (self._in_thread(render) if waits else asyncio.to_thread(render))
        made: dict[str, Any] = {"prompt": prompt.text, "prompt_token_ids": prompt.token_ids}
        return made | {"multi_modal_data": prompt.media} if prompt.media else made

    async def beam_search(
        self, prompt: Any, params: BeamSearchParams, lora_request: LoRARequest | None = None
    ) -> BeamSearchOutput:
        """The `beam_width` likeliest continuations of one prompt, best first, in `.outputs`.

        Other requests go on meanwhile; cancelling the task ends it. Raises as `generate` does.
        """
        parsed = await self._read(self._engine._running.prompts.read(prompt).all)
        adapter = await self._adapter(lora_request)
        parsed = [dataclasses.replace(one, adapter=adapter) for one in parsed]
        search = beam_search.steps(self._engine, parsed, params)
        outputs = None
        while True:
            try:
                extended, asked = search.send(outputs)
            except StopIteration as ended:
                [found] = ended.value
                return found
            outputs = await asyncio.gather(*(self._last(one, asked) for one in extended))

    async def _last(self, prompt: Prompt, params: SamplingParams) -> RequestOutput:
        async for output in self._outputs(lambda: [prompt], params, None, 0, None):
            if output.finished:
                return output
        raise EngineClosedError("the engine was closed in the middle of a beam search.")

    async def abort(self, request_id: str | Sequence[str]) -> None:
        """Ends requests and frees their pages; their generators end after one more output.

        Unknown ids are ignored.
        """
        await self._ask(lambda: self._engine.abort(request_id))

    async def reset_prefix_cache(self) -> bool:
        """Forgets all cached prefixes; requests that run go on. True where none does."""
        return await self._ask(self._engine.reset_prefix_cache)

    @property
    def params(self) -> dict[str, jax.Array]:
        """The weights, a JAX pytree: dotted name to array on the device."""
        return self._engine.params

    async def update_params(self, params: Mapping[str, Any]) -> None:
        """Takes new weights in place of the old ones, as `Engine.update_params` does."""
        await self._ask(lambda: self._engine.update_params(params))

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """As `Engine.add_lora`; other requests go on meanwhile."""
        return await asyncio.to_thread(self._engine.add_lora, lora_request)

    async def remove_lora(self, lora_int_id: int) -> bool:
        """As `Engine.remove_lora`."""
        return await self._ask(lambda: self._engine.remove_lora(lora_int_id))

    async def pin_lora(self, lora_int_id: int) -> bool:
        """As `Engine.pin_lora`."""
        return await asyncio.to_thread(self._engine.pin_lora, lora_int_id)

    async def list_loras(self) -> set[int]:
        """As `Engine.list_loras`."""
        return self._engine.list_loras()

    def stats(self) -> EngineStats:
        """Counts of requests, tokens, pages and programs. Never waits for a step."""
        return self._engine._running.stats()

    def get_tokenizer(self) -> Any:
        """The underlying `transformers` tokenizer; None with `skip_tokenizer_init`."""
        return self._engine.get_tokenizer()

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses without sampling_params."""
        return self._engine.get_default_sampling_params()

    @property
    def options(self) -> EngineOptions:
        """What it was made with."""
        return self._engine.options

    @property
    def modalities(self) -> frozenset[str]:
        """What prompts may hold: `text`, and the kinds of media that the model takes."""
        media = self._engine._running.spec.media
        return frozenset(("text", *(() if media is None else media.kinds)))

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and its output."""
        return self._engine._running.spec.config.max_model_len

    @property
    def is_running(self) -> bool:
        """Whether it takes requests: neither closed nor dead."""
        return self._worker.ended is None

    @property
    def errored(self) -> bool:
        """Whether it died of an error."""
        return self.dead_error is not None

    @property
    def dead_error(self) -> EngineClosedError | None:
        """Tells what it died of, with the error as `__cause__`; None if it did not."""
        ended = self._worker.ended
        return None if ended is None or ended.__cause__ is None else ended

    def close(self) -> None:
        """Ends every generator with EngineClosedError and gives the device memory back.

        Waits for the step in hand. May be called twice, and from any thread.
        """
        self._finalizer()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await asyncio.to_thread(self.close)

    async def _ask(self, function: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._worker.ask(function))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, function)

    async def _read(self, parse: Callable[[], list[Prompt]]) -> list[Prompt]:
        """Prompts with all their media prepared. Raises as `generate` does."""
        prompts = await self._in_thread(parse)
        for prompt in prompts:
            for medium in prompt.media:
                await asyncio.wrap_future(medium.preparing)
        return prompts

    async def _adapter(self, lora_request: LoRARequest | None) -> LoadedAdapter | None:
        if lora_request is None:
            return None
        known = adapters.required(self._engine._running.adapters)
        return await asyncio.to_thread(known.get, lora_request)

    async def _outputs(
        self,
        parse: Callable[[], list[Prompt]],
        params: SamplingParams | None,
        request_id: str | None,
        priority: int,
        lora_request: LoRARequest | None,
        *,
        sees: bool = False,
    ) -> AsyncGenerator[RequestOutput, None]:
        """`sees` says that `parse` may read pictures, which is not for the one thread."""

        def make() -> Request:
            read = parse() if prompts is None else prompts
            given = [dataclasses.replace(one, adapter=adapter or one.adapter) for one in read]
            return self._make(given, params, priority, stream.request_id)

        stream = Stream(_checked_id(request_id), asyncio.get_running_loop(), _kind(params))
        if isinstance(params, SamplingParams) and params.structured_outputs is not None:
            # beside the others, which do not wait for it
            await asyncio.to_thread(self._engine._running.grammars.check, params)
        prompts = await self._read(parse) if sees else None
        adapter = await self._adapter(lora_request)
        with self._worker.following(stream):
            self._preparing.submit(self._worker.add, make, stream)
            finished = False
            while not finished:
                output = await stream.next()
                finished = output.finished
                yield output

    def _make(
        self, prompts: list[Prompt], params: SamplingParams | None, priority: int, request_id: str
    ) -> Request:
        if len(prompts) != 1:
            raise PromptError(f"{len(prompts)} prompts were given: pass one to each call.")
        request = self._engine._maker(1, params, priority, _kind(params))(0, prompts[0])
        request.id = request_id
        return request


def _kind(params: object) -> RequestOutputKind:
    if isinstance(params, SamplingParams):
        return params.output_kind
    return RequestOutputKind.CUMULATIVE


def _checked_id(request_id: str | None) -> str:
    if request_id is None:
        return uuid.uuid4().hex
    if not isinstance(request_id, str) or not request_id:
        raise OptionError(f"request_id={request_id!r} must be text that is not empty, or None.")
    return request_id
