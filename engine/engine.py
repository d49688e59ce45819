"""`Engine`: text in, text out."""

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ..errors import EngineClosedError, OptionError, PromptError
from ..lora.request import LoRARequest
from . import adapters, beam_search, requests
from .assembly import Assembly, assemble
from .chat import as_conversations, render_chat
from .chat_media import has_media_parts, take_media
from .fair_lock import FairLock
from .incoming import Incoming
from .interrupts import deferred_interrupts
from .options import make_options
from .outputs import RequestOutput
from .progress import Progress
from .prompts import Prompt
from .reading import Reading
from .request import Request
from .sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from .stats import EngineStats
from .tokenizer import Tokenizer
from .weights import update_params

Params = SamplingParams | BeamSearchParams
LoRAs = LoRARequest | Sequence[LoRARequest | None] | None


class Engine:
    """An LLM ready to generate. Also importable as `LLM`.

    Thread-safe: calls from several threads share the device. Use it as a context manager, or call
    `close`, to give the device memory back; garbage collection does so too.
    """

    def __init__(self, model: str | Path | None = None, **options: Any) -> None:
        """Loads a model and starts compiling its programs.

        Args:
            model: Hugging Face id, local folder, or a model that Quire comes with: `demo`, which
                None is, `vision-demo` and `audio-demo`.
            **options: the fields of `EngineOptions`; the documentation has a page on them.

        Raises:
            OptionError, ModelConfigError, UnsupportedModelError, CheckpointError,
            MemoryBudgetError.
        """
        name = str(model) if isinstance(model, Path) else model
        self.options = make_options(name, **options)
        self._lock = FairLock()
        self._serial = itertools.count()
        self._assembly: Assembly | None = assemble(self.options)
        self._finalizer = weakref.finalize(self, self._assembly.close)

    def generate(
        self,
        prompts: Any,
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRAs = None,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Completes prompts, all batched together.

        Args:
            prompts: text, token ids, a dict (`prompt` or `prompt_token_ids`, `cache_salt`,
                `multi_modal_data`, `mm_processor_kwargs`), or a list of those.
            sampling_params: one for all, or one for each prompt; None takes the model's defaults.
                `BeamSearchParams` run `beam_search`.
            use_tqdm: shows progress and tokens per second.
            lora_request: an adapter for all, or one or None for each prompt.
            priority: lower goes first, under `scheduling_policy="priority"`; one, or one each.

        Returns:
            One output a prompt, in their order.

        Raises:
            PromptError, OptionError, AdapterError: before anything is queued; the engine serves on.
            PromptError, MediaError: a prompt with media, which are read while those before it run;
                this call's requests are aborted, the engine serves on.
            KeyboardInterrupt: after Ctrl-C; this call's requests are aborted, the engine serves on.
        """
        reading = self._parse(prompts, lora_request)
        if isinstance(sampling_params, BeamSearchParams):
            return [*beam_search.run(self, reading.all(), sampling_params, use_tqdm=use_tqdm)]
        return self._generate(reading, sampling_params, use_tqdm, priority)

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: Params | Sequence[Params] | None = None,
        use_tqdm: bool = True,
        lora_request: LoRAs = None,
        *,
        chat_template: str | Path | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation (a list of messages) or several (a list of those).

        Args:
            chat_template: text or path; None takes the engine's, then the tokenizer's own.
            tools: function definitions for the template, in OpenAI's form.
            mm_processor_kwargs: settings of the image processor for this call.

        Raises:
            ChatTemplateError: no template, or it refuses the conversation; and as `generate`.
        """
        reading = self._chat_prompts(
            messages,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs,
            mm_processor_kwargs=mm_processor_kwargs,
        )
        reading = adapters.given_to(reading, lora_request, self._running.adapters)
        if isinstance(sampling_params, BeamSearchParams):
            return [*beam_search.run(self, reading.all(), sampling_params, use_tqdm=use_tqdm)]
        return self._generate(reading, sampling_params, use_tqdm, priority)

    def beam_search(
        self,
        prompts: Any,
        params: BeamSearchParams,
        lora_request: LoRAs = None,
        *,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """The `beam_width` likeliest continuations of each prompt, best first, in `.outputs`."""
        parsed = self._parse(prompts, lora_request).all()
        return [*beam_search.run(self, parsed, params, use_tqdm=use_tqdm)]

    def stream(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: LoRAs = None,
    ) -> Iterator[RequestOutput]:
        """Yields outputs as they come, each with the text and tokens new since the last one.

        Outputs of several prompts interleave; their `request_id`s ascend in the order of the
        prompts. Leaving the loop aborts what is not done.
        """
        return self._stream(self._parse(prompts, lora_request), sampling_params)

    def stream_chat(
        self,
        messages: Sequence[Any],
        sampling_params: SamplingParams | None = None,
        lora_request: LoRAs = None,
        **template: Any,
    ) -> Iterator[RequestOutput]:
        """`stream` for a conversation; `template` as the keywords of `chat`."""
        reading = self._chat_prompts(messages, **template)
        reading = adapters.given_to(reading, lora_request, self._running.adapters)
        return self._stream(reading, sampling_params)

    def abort(self, request_id: str | Sequence[str]) -> None:
        """Ends requests at once and frees their pages; unknown ids are ignored."""
        for one in [request_id] if isinstance(request_id, str) else request_id:
            with self._lock:
                self._running.core.abort(one)

    @property
    def params(self) -> dict[str, jax.Array]:
        """The weights, a JAX pytree: dotted name to array on the device, or on all of the mesh.

        Those of the first replica, where there are several. Where there are fewer KV heads than
        devices, `qkv` holds a copy of each for every device.
        """
        return self._running.replicas[0].runner.executor.params

    def update_params(self, params: Mapping[str, Any]) -> None:
        """Takes new weights, of the names, shapes and types of `params`, in place of the old ones.

        Arrays that lie on the devices as those of `params` do are taken without a copy, and others
        on the same devices go between these; all replicas get them. Running requests go on with the
        new weights from their tokens so far; the prefix cache is dropped. Raises CheckpointError,
        before anything changes, where the tree does not match.
        """
        if jax.process_count() > 1:
            raise OptionError("weights cannot be replaced where several processes share a model.")
        with self._lock:
            update_params(self._running, params)

    def save(self, path: str | Path) -> None:
        """Writes weights (Orbax), config and tokenizer to a folder that `Engine(path)` loads."""
        from .checkpoint import save_params

        spec = self._running.spec
        save_params(path, self.params, spec.source.folder, spec.source.parts, spec.copies)

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached prefixes; requests that run are not disturbed.

        True where none ran, so that no page holds anything computed before.
        """
        with self._lock:
            return self._running.reset_prefix_cache()

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """Loads an adapter before a request needs it; False where it was loaded already.

        Raises AdapterError, or OptionError where the engine takes none.
        """
        return adapters.required(self._running.adapters).add(lora_request)

    def remove_lora(self, lora_int_id: int) -> bool:
        """Forgets an adapter, its cached pages included; False where it is not known.

        Requests that run with it go on.
        """
        with self._lock:
            return adapters.required(self._running.adapters).remove(lora_int_id)

    def pin_lora(self, lora_int_id: int) -> bool:
        """Keeps an adapter in host memory until it is removed; False where it is not known."""
        return adapters.required(self._running.adapters).pin(lora_int_id)

    def list_loras(self) -> set[int]:
        """The ids of the adapters that are loaded."""
        return adapters.required(self._running.adapters).ids()

    def stats(self) -> EngineStats:
        """Counts of requests, tokens, pages and programs, now."""
        with self._lock:
            return self._running.stats()

    def get_tokenizer(self) -> Any:
        """The underlying `transformers` tokenizer; None with `skip_tokenizer_init`."""
        tokenizer = self._running.tokenizer
        return None if tokenizer is None else tokenizer.hf

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses without sampling_params."""
        return self._running.default_params.clone()

    @property
    def ready(self) -> bool:
        """Whether every planned program is compiled. Serving does not wait for that."""
        return self._running.programs.ready

    def wait_until_ready(self, timeout: float | None = None) -> bool:
        """Blocks until `ready`; False after `timeout` seconds."""
        return self._running.programs.wait(timeout)

    @property
    def leads(self) -> bool:
        """Whether it takes requests: of several processes only the first does."""
        return self._running.follower is None

    def follow(self) -> None:
        """Runs what the first of several processes schedules, until that closes its engine.

        Raises OptionError in the first, and EngineClosedError where that is lost.
        """
        assembly = self._running
        if assembly.follower is None:
            raise OptionError("only processes whose engine does not lead (Engine.leads) follow.")
        execute = assembly.replicas[0].runner.executor.execute
        for key, arrays in assembly.follower.messages():
            execute(key, *arrays)

    def close(self) -> None:
        """Aborts everything and gives the device memory back. May be called twice."""
        with self._lock:
            self._finalizer()
            self._assembly = None

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def _running(self) -> Assembly:
        if self._assembly is None:
            raise EngineClosedError("this engine was closed. Make a new one.")
        return self._assembly

    def _parse(self, prompts: Any, lora_request: LoRAs) -> Reading:
        reading = self._running.prompts.read(prompts)
        return adapters.given_to(reading, lora_request, self._running.adapters)

    def _chat_prompts(
        self,
        messages: Sequence[Any],
        *,
        chat_template: str | Path | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        **template: Any,
    ) -> Reading:
        tokenizer = self._running.tokenizer
        if tokenizer is None:
            raise PromptError("chat needs a tokenizer, but skip_tokenizer_init=True was given.")
        chosen = chat_template if chat_template is not None else self.options.chat_template
        jobs = [
            functools.partial(
                self._chat_prompt,
                tokenizer,
                one,
                mm_processor_kwargs,
                chat_template=chosen,
                **template,
            )
            for one in as_conversations(messages)
        ]
        return self._running.prompts.reading(jobs, with_media=has_media_parts(messages))

    def _chat_prompt(
        self, tokenizer: Tokenizer, messages: list[dict[str, Any]], settings: Any, **template: Any
    ) -> Prompt:
        media, reader = self._running.media, self._running.prompts
        if media is None:
            text = render_chat(tokenizer, messages, **template)
            return reader.read_one(text, chat=True)
        messages, sources = take_media(messages)
        text = render_chat(tokenizer, messages, shown=media.spec.formats, **template)
        data = media.fetch(sources) if sources else None
        prompt = {"prompt": text, "multi_modal_data": data, "mm_processor_kwargs": settings}
        return reader.read_one(prompt, chat=True)

    def _maker(
        self,
        count: int,
        params: Params | Sequence[Params] | None,
        priority: int | Sequence[int] | None,
        kind: RequestOutputKind,
    ) -> Callable[[int, Prompt], Request]:
        if not self.leads:
            raise OptionError(
                f"this is process {jax.process_index()} of {jax.process_count()}, and the first "
                "takes all requests: call Engine.follow() here, which runs what that schedules."
            )
        return requests.maker(self._running, count, params, priority, kind, self._serial)

    def _generate(
        self,
        reading: Reading,
        params: Params | Sequence[Params] | None,
        use_tqdm: bool,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        make = self._maker(len(reading), params, priority, RequestOutputKind.FINAL_ONLY)
        incoming = Incoming(reading, make)
        done: dict[str, RequestOutput] = {}
        with Progress(len(incoming), shown=use_tqdm) as progress:

            def sink(output: RequestOutput) -> None:
                done[output.request_id] = output
                progress.add(output)

            with self._aborting(incoming), deferred_interrupts() as check:
                while len(done) < len(incoming):
                    self._advance(incoming, sink)
                    check()
        return [done[request.id] for request in incoming.made]

    def _stream(
        self, reading: Reading, params: SamplingParams | Sequence[SamplingParams] | None
    ) -> Iterator[RequestOutput]:
        pieces: list[RequestOutput] = []
        make = self._maker(len(reading), params, None, RequestOutputKind.DELTA)
        incoming = Incoming(reading, make)

        def iterate() -> Iterator[RequestOutput]:
            left = len(incoming)
            with self._aborting(incoming):
                while left:
                    with deferred_interrupts() as check:
                        self._advance(incoming, pieces.append)
                        check()
                    ready, pieces[:] = list(pieces), []
                    for piece in ready:
                        left -= piece.finished
                        yield piece

        return iterate()

    def _advance(self, incoming: Incoming, sink: Any) -> None:
        """Queues those whose turn it is and whose media are prepared, and steps.

        Where the device has nothing else to do, waits for the media of the next.
        """
        if not self._running.core.has_work:
            incoming.wait()
        with self._lock:
            core = self._running.core
            while (request := incoming.next(core.num_waiting)) is not None:
                core.add(request, sink)
            core.step()

    def _step(self) -> None:
        with self._lock:
            self._running.core.step()

    @contextlib.contextmanager
    def _aborting(self, incoming: Incoming) -> Iterator[None]:
        """Aborts requests that an exception, Ctrl-C included, leaves behind."""
        try:
            yield
        except BaseException:
            incoming.cancel()
            if self._assembly is not None:
                self.abort([request.id for request in incoming.made])
            raise
