"""Servers for the tests that talk to one, and a stand-in for the engine for the others."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import openai
import pytest
from tests.live_server import SMALL, TOOLS, live_server
from tests.lora_folders import lora_folder
from tests.test_seeds import DEMO

from quire import (
    AdapterError,
    AsyncEngine,
    CompletionOutput,
    EngineClosedError,
    EngineOptions,
    EngineStats,
    LoRARequest,
    RequestOutput,
    SamplingParams,
)
from quire.entrypoints.openai.options import ServerOptions
from quire.entrypoints.openai.service import Service


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a server with the demo model, such as `http://127.0.0.1:8000`."""
    with live_server(*SMALL, *TOOLS, "--enable-request-id-headers") as address:
        yield address


class AdapterServer(NamedTuple):
    """A server with the demo model and the adapter `sql`, whose clients may load others."""

    address: str
    sql: Path
    """The folder of `sql`."""
    folder: Path
    """Where clients may load from."""


@pytest.fixture(scope="session")
def adapter_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterServer]:
    """Computes in float32, so that answers do not depend on what else is computed."""
    folder = tmp_path_factory.mktemp("adapters")
    sql = lora_folder(folder / "sql", DEMO)
    roots = ["--lora-dir", str(folder)]
    flags = ["--enable-lora", "--lora-modules", f"sql={sql}", *roots, "--dtype", "float32"]
    allowed = {"QUIRE_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    with live_server(*SMALL, *flags, environment=allowed) as address:
        yield AdapterServer(address, sql, folder)


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client, which asks the server once."""
    with openai.OpenAI(base_url=f"{server}/v1", api_key="EMPTY", max_retries=0) as client:
        yield client


class StandIn:
    """Has of an `AsyncEngine` what the service needs. Outputs come when `step` is called."""

    def __init__(self, num_pages: int = 10, *, enable_lora: bool = False) -> None:
        self.options = EngineOptions(enable_lora=enable_lora)
        self.max_model_len = 64
        self.is_running = True
        self.queues: list[asyncio.Queue[RequestOutput | Exception]] = []
        """One for each request that has not ended, in the order they came."""
        self.prompts: list[Any] = []
        """Those of all requests, in the order they came."""
        self.running = 0
        """How many of these are said to run; the others wait."""
        self.num_pages = num_pages
        self.adapters: dict[int, LoRARequest] = {}
        self.loads: list[str] = []
        """The paths that were read."""

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=self.running,
            num_waiting=len(self.queues) - self.running,
            num_pages=self.num_pages,
            pages_in_use=self.running,
            prefix_cache_queried_tokens=20,
            prefix_cache_hit_tokens=16,
            num_preemptions=1,
            prompt_tokens=30,
            generation_tokens=12,
            num_steps=5,
            programs_compiled=2,
            ready=True,
            uptime=1.0,
        )

    async def generate(
        self,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        queue: asyncio.Queue[RequestOutput | Exception] = asyncio.Queue()
        self.queues.append(queue)
        self.prompts.append(prompt)
        try:
            while True:
                if isinstance(item := await queue.get(), Exception):
                    raise item
                yield item
                if item.finished:
                    return
        finally:
            self.queues.remove(queue)

    def get_default_sampling_params(self) -> SamplingParams:
        return SamplingParams()

    def get_tokenizer(self) -> None:
        return None

    async def add_lora(self, request: LoRARequest) -> bool:
        self.loads.append(request.lora_path)
        await asyncio.sleep(0.01)
        if "bad" in request.lora_path:
            raise AdapterError(f"lora_path={request.lora_path!r} holds no adapter.")
        self.adapters[request.lora_int_id] = request
        return True

    async def remove_lora(self, lora_int_id: int) -> bool:
        return self.adapters.pop(lora_int_id, None) is not None

    @property
    def errored(self) -> bool:
        return not self.is_running

    @property
    def dead_error(self) -> EngineClosedError | None:
        return EngineClosedError("the engine stopped.") if self.errored else None

    def die(self) -> None:
        self.is_running = False
        for queue in self.queues:
            queue.put_nowait(EngineClosedError("the engine stopped."))


def output(tokens: int, reason: str | None = None, prompt: int = 3) -> RequestOutput:
    """An output with so many new tokens; the last one if it has a reason."""
    one = CompletionOutput(0, "x" * tokens, [7] * tokens, finish_reason=reason)
    return RequestOutput("id", "p", [1] * prompt, None, [one], finished=reason is not None)


@pytest.fixture
def engine() -> StandIn:
    return StandIn()


def make_service(engine: StandIn, model: str | None = None, **options: Any) -> Service:
    """A service over the stand-in."""
    return Service(cast(AsyncEngine, engine), ServerOptions(**options), model)
