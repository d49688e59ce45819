"""The engine behind the routes: names of models, a bounded queue, and what is measured."""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from ... import (
    AsyncEngine,
    BeamSearchOutput,
    BeamSearchParams,
    LoRARequest,
    RequestOutput,
    SamplingParams,
)
from .adapters import Adapters
from .errors import ApiError
from .metrics import Metrics
from .options import ServerOptions
from .turns import Turns
from .watch import Watch

logger = logging.getLogger(__name__)

DEMO = "demo"
"""What the embedded model is called."""
RETRY_AFTER = "1"
CACHE_OPTIONS = {
    "block_size": "page_size",
    "enable_prefix_caching": "enable_prefix_caching",
    "gpu_memory_utilization": "gpu_memory_utilization",
}
"""Labels of `cache_config_info`, and the engine options they tell."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServedModel:
    """What a request named."""

    name: str
    """Answers bear it."""
    lora_request: LoRARequest | None = None
    """The adapter; None is the model alone."""


def names_of(model: str | None, options: ServerOptions) -> tuple[str, ...]:
    """The names a model is called by; answers bear the first. None is the demo model."""
    return tuple(options.served_model_name or (model or DEMO,))


class Service:
    """One engine with the options it is served under. Everything is used on one event loop."""

    def __init__(self, engine: AsyncEngine, options: ServerOptions, model: str | None) -> None:
        """`model` is the id or folder the engine was made from; None is the demo model."""
        self.engine = engine
        self.options = options
        self.root = model or DEMO
        """Where the model comes from."""
        self.model_names = names_of(model, options)
        """The names it is called by; answers bear the first."""
        self.adapters = Adapters(engine, self.model_names, options.lora_dir or ())
        self.created = int(time.time())
        known = {label: getattr(engine.options, name) for label, name in CACHE_OPTIONS.items()}
        info = {label: str(value) for label, value in known.items() if value is not None}
        self.metrics = Metrics(options.metrics_prefix, self.model_names[0], engine.stats, info)
        self.turns = Turns()
        """Of requests that begin."""
        self._in_flight = 0
        self._most_running = 0

    def find_model(self, name: str | None) -> ServedModel:
        """The model or adapter of that name; None is the model. Raises ApiError where none is."""
        if name is None or name in self.model_names:
            return ServedModel(self.model_names[0])
        if adapter := self.adapters.get(name):
            return ServedModel(name, adapter.request)
        names = [*self.model_names, *(one.request.lora_name for one in self.adapters)]
        message = f"The model `{name}` does not exist. Served here: {', '.join(names)}."
        raise ApiError(404, message, param="model")

    def generate(
        self,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """The engine's `generate`, within the bounds of the queue, measured.

        Raises, from the first step of the generator on, what the engine does, and ApiError where
        too many wait or the adapter was replaced at this moment.
        """
        outputs = self.engine.generate(
            prompt, params, request_id, priority=priority, lora_request=lora_request
        )
        return self._measured(outputs, params, request_id)

    def chat(
        self,
        messages: Sequence[Any],
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
        **template: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """The engine's `chat`; otherwise as `generate`."""
        outputs = self.engine.chat(
            messages,
            params,
            request_id,
            priority=priority,
            lora_request=lora_request,
            **template,
        )
        return self._measured(outputs, params, request_id)

    async def beam_search(
        self,
        prompt: Any,
        params: BeamSearchParams,
        request_id: str,
        *,
        lora_request: LoRARequest | None = None,
    ) -> BeamSearchOutput:
        """The engine's `beam_search`; raises as `generate` does."""
        self._log(request_id, params)
        with self._admitted(params.beam_width), self.adapters.used():
            watch = Watch(self.metrics, params.beam_width)
            with watch.outcome():
                output = await self.engine.beam_search(prompt, params, lora_request)
                watch.see(output)
            return output

    async def chat_prompt(self, **options: Any) -> dict[str, Any]:
        """The engine's `chat_prompt`, which may fetch pictures: within the bounds of the queue."""
        with self._admitted(1):
            return await self.engine.chat_prompt(**options)

    @functools.cached_property
    def default_params(self) -> SamplingParams:
        """What a request that says nothing of it gets. Not to be changed."""
        return self.engine.get_default_sampling_params()

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for room, those on their way to the engine with them."""
        stats = self.engine.stats()
        # what has run at once fits: so many are not taken for waiting while the engine, ahead of
        # this event loop, has ended them already or has not begun them
        self._most_running = max(self._most_running, stats.num_running)
        return max(stats.num_waiting, len(self.turns) + self._in_flight - self._most_running)

    def check_room(self) -> None:
        """Raises ApiError where as many sequences wait as may."""
        most = self.options.max_waiting
        if most is None or (waiting := self.num_waiting) < most:
            return
        self.metrics.rejections += 1
        raise ApiError(
            503,
            f"{waiting} sequences wait already, and no more than {most} may. Try again later.",
            headers={"Retry-After": RETRY_AFTER},
        )

    async def _measured(
        self,
        outputs: AsyncGenerator[RequestOutput, None],
        params: SamplingParams,
        request_id: str,
    ) -> AsyncGenerator[RequestOutput, None]:
        self._log(request_id, params)
        with self._admitted(params.n), self.adapters.used():
            watch = Watch(self.metrics, params.n)
            watch.asked(params)
            with watch.outcome():
                async with contextlib.aclosing(outputs):
                    async for output in outputs:
                        watch.see(output)
                        yield output

    @contextlib.contextmanager
    def _admitted(self, sequences: int) -> Iterator[None]:
        if sequences > self.options.max_n:
            message = f"n={sequences} is above {self.options.max_n}, the most here. Ask for less."
            raise ApiError(400, message, param="n")
        self.check_room()
        self._in_flight += sequences
        try:
            yield
        finally:
            self._in_flight -= sequences

    def _log(self, request_id: str, params: SamplingParams | BeamSearchParams) -> None:
        if self.options.enable_log_requests:
            logger.info("request %s: %r", request_id, params)
