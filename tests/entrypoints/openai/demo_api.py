"""The routes of completions, chats and tokens over the demo model, without a server."""

import asyncio
import functools
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from quire import (
    AsyncEngine,
    BeamSearchOutput,
    BeamSearchParams,
    LoRARequest,
    QuireError,
    RequestOutput,
)
from quire.entrypoints.openai.chat import create_chat_completion
from quire.entrypoints.openai.completions import create_completion
from quire.entrypoints.openai.errors import ApiError, as_api_error, error_body
from quire.entrypoints.openai.options import ServerOptions
from quire.entrypoints.openai.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from quire.entrypoints.openai.service import ServedModel
from quire.entrypoints.openai.streams import ClientGoneError, answer_nobody
from quire.entrypoints.openai.tokenization import detokenize, tokenize

PARIS = "The capital of France is"
ASK_PARIS = [{"role": "user", "content": "What is the capital of France?"}]
ASK_WEATHER = [{"role": "user", "content": "What's the weather like in San Francisco?"}]
GET_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a given location",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {
                    "type": "string",
                    "description": "City and state, e.g., 'San Francisco, CA'",
                },
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location", "unit"],
        },
    },
}
WITH_TOOLS = {"enable_auto_tool_choice": True, "tool_call_parser": "llama3_json"}


class DemoService:
    """The engine behind the routes, without bounds and metrics."""

    def __init__(self, engine: AsyncEngine, options: ServerOptions) -> None:
        self.engine = engine
        self.options = options
        self.default_params = engine.get_default_sampling_params()

    def find_model(self, name: str | None) -> ServedModel:
        if name not in (None, "demo"):
            raise ApiError(404, f"The model `{name}` does not exist.", param="model")
        return ServedModel("demo")

    def generate(
        self,
        prompt: Any,
        params: Any,
        request_id: str,
        *,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        return self.engine.generate(prompt, params, request_id, priority=priority)

    async def chat_prompt(self, **options: Any) -> dict[str, Any]:
        return await self.engine.chat_prompt(**options)

    async def beam_search(
        self,
        prompt: Any,
        params: BeamSearchParams,
        request_id: str,
        *,
        lora_request: LoRARequest | None = None,
    ) -> BeamSearchOutput:
        return await self.engine.beam_search(prompt, params)


@functools.cache
def demo_engine() -> AsyncEngine:
    """One engine for all tests; the end of the program closes it."""
    return AsyncEngine(enforce_eager=True, use_tqdm_on_load=False, max_model_len=512)


def demo_app(**options: Any) -> FastAPI:
    """The routes, as the server's options have it."""
    service: Any = DemoService(demo_engine(), ServerOptions(**options))
    app = FastAPI()

    @app.post("/v1/completions", response_model=None)
    async def _completions(body: CompletionRequest, http_request: Request) -> Response:
        return await create_completion(service, body, http_request)

    @app.post("/v1/chat/completions", response_model=None)
    async def _chat(body: ChatCompletionRequest, http_request: Request) -> Response:
        return await create_chat_completion(service, body, http_request)

    @app.post("/tokenize")
    async def _tokenize(body: TokenizeRequest) -> dict[str, Any]:
        return await tokenize(service, body)

    @app.post("/detokenize")
    async def _detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        return await detokenize(service, body)

    for kind in (ApiError, QuireError, RequestValidationError, Exception):
        app.add_exception_handler(kind, _told)
    app.add_exception_handler(ClientGoneError, answer_nobody)
    return app


def _told(request: Request, exception: Exception) -> Response:
    error = as_api_error(exception)
    return JSONResponse(error_body(error), error.status, headers=error.headers)


def post(path: str, body: Any, options: dict[str, Any] | None = None) -> httpx.Response:
    """The response to a body, which is JSON, or bytes as they are."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(demo_app(**(options or {})))
        async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
            if isinstance(body, bytes):
                kind = {"content-type": "application/json"}
                return await client.post(path, content=body, headers=kind)
            return await client.post(path, json=body)

    return asyncio.run(send())


def complete(options: dict[str, Any] | None = None, **body: Any) -> dict[str, Any]:
    """The answer to a completion, greedy unless the body says otherwise."""
    return answer("/v1/completions", {"temperature": 0, **body}, options)


def chat(options: dict[str, Any] | None = None, **body: Any) -> dict[str, Any]:
    """The answer to a chat, greedy unless the body says otherwise."""
    return answer("/v1/chat/completions", {"temperature": 0, **body}, options)


def stream_completion(options: dict[str, Any] | None = None, **body: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed completion."""
    return chunks("/v1/completions", {"temperature": 0, **body}, options)


def stream_chat(options: dict[str, Any] | None = None, **body: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed chat."""
    return chunks("/v1/chat/completions", {"temperature": 0, **body}, options)


def answer(path: str, body: Any, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON of a response that must succeed."""
    response = post(path, body, options)
    assert response.status_code == 200, response.text
    return response.json()


def chunks(
    path: str, body: dict[str, Any], options: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The events of a stream, of which the last must be `[DONE]`."""
    response = post(path, {**body, "stream": True}, options)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def refusal(path: str, body: Any, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """The error of a response that must be a 400."""
    response = post(path, body, options)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("BadRequestError", 400)
    return error
