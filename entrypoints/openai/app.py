"""The routes of the server, each a few lines over the service."""

import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from ... import QuireError, __version__
from .adapters import ServedAdapter
from .chat import create_chat_completion
from .completions import create_completion
from .errors import ApiError, as_api_error, bad_request, error_body
from .middleware import (
    METRICS_ROUTE,
    OPEN_ROUTES,
    REQUEST_ID,
    ApiKeys,
    BodyLimit,
    RequestIds,
    RootPath,
)
from .options import ADAPTER_VARIABLES, adapters_variable
from .protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    LoadAdapterRequest,
    TokenizeRequest,
    UnloadAdapterRequest,
)
from .service import Service
from .streams import ClientGoneError, answer_nobody, unless_gone
from .tokenization import detokenize, tokenize

logger = logging.getLogger(__name__)

ERRORS = {
    400: "The request is not valid; `param` names the field.",
    401: "The API key is missing or wrong.",
    404: "There is no such model or adapter.",
    413: "The body is too long.",
    503: "Too many requests wait, or the engine does not run.",
}
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["integer", "string", "null"]},
            },
        }
    },
}
LOAD_ADAPTER = "/v1/load_lora_adapter"
UNLOAD_ADAPTER = "/v1/unload_lora_adapter"
STREAMED = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}


def create_app(service: Service, *, request_ids: bool = True) -> FastAPI:
    """The ASGI application; it neither starts nor closes the service's engine.

    Args:
        request_ids: answers bear the X-Request-Id; False where a proxy sees to it.
    """
    app = FastAPI(
        title="Quire",
        summary="An OpenAI-compatible server.",
        version=__version__,
        redirect_slashes=False,
        responses=_responses(401, 404, 413),
    )
    _add_generation(app, service)
    _add_tokenization(app, service)
    _add_models(app, service)
    if adapters_variable(os.environ):
        _add_adapters(app, service)
    _add_operation(app, service)
    for exception in (ApiError, QuireError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(exception, _answer_error)
    for gone in (ClientGoneError, ClientDisconnect):
        app.add_exception_handler(gone, answer_nobody)
    _add_middleware(app, service, request_ids=request_ids)
    app.openapi = lambda: _openapi(app)
    return app


def _add_generation(app: FastAPI, service: Service) -> None:
    failures = _responses(400, 503)
    router = APIRouter(route_class=_route_in_turn(service))

    @router.post("/v1/completions", responses={**STREAMED, **failures}, response_model=None)
    async def completions(request: CompletionRequest, http_request: Request) -> Response:
        """Completes prompts."""
        return await create_completion(service, request, http_request)

    @router.post("/v1/chat/completions", responses={**STREAMED, **failures}, response_model=None)
    async def chat_completions(request: ChatCompletionRequest, http_request: Request) -> Response:
        """Answers in a conversation."""
        return await create_chat_completion(service, request, http_request)

    app.include_router(router)


def _route_in_turn(service: Service) -> type[APIRoute]:
    """The class of routes whose requests wait for their turn, once their bodies are here.

    One that finds the queue full is told so without waiting; one whose client hangs up leaves.
    """

    class InTurn(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def in_turn(request: Request) -> Response:
                await request.body()  # a client that sends slowly keeps nobody waiting
                if service.turns.taken:
                    service.check_room()
                await unless_gone(request.receive, service.turns.wait())
                return await handle(request)

            return in_turn

    return InTurn


def _add_tokenization(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize", responses=_responses(400, 503))
    async def tokens(request: TokenizeRequest) -> dict[str, Any]:
        """The tokens of a text or of a conversation."""
        return await tokenize(service, request)

    @app.post("/detokenize", responses=_responses(400))
    async def text(request: DetokenizeRequest) -> dict[str, Any]:
        """The text of tokens."""
        return await detokenize(service, request)


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model, by each of its names, and the adapters."""
        cards = [_card(service, name) for name in service.model_names]
        cards += [_adapter_card(service, one) for one in service.adapters]
        return {"object": "list", "data": cards}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        """The model or the adapter of that name."""
        service.find_model(model)
        adapter = service.adapters.get(model)
        return _adapter_card(service, adapter) if adapter else _card(service, model)


def _add_adapters(app: FastAPI, service: Service) -> None:
    @app.post(LOAD_ADAPTER, responses=_responses(400, 503), response_class=PlainTextResponse)
    async def load_adapter(request: LoadAdapterRequest) -> str:
        """Loads an adapter, or replaces one, while others are at work."""
        name, path = request.lora_name, request.lora_path
        await service.adapters.load(name, path, in_place=request.load_inplace)
        return f"Success: LoRA adapter '{name}' added successfully."

    @app.post(UNLOAD_ADAPTER, responses=_responses(400, 503), response_class=PlainTextResponse)
    async def unload_adapter(request: UnloadAdapterRequest) -> str:
        """Forgets an adapter; requests that have begun end with it."""
        await service.adapters.unload(request.lora_name, request.lora_int_id)
        return f"Success: LoRA adapter '{request.lora_name}' removed successfully."


def _add_operation(app: FastAPI, service: Service) -> None:
    stopped: dict[int | str, dict[str, Any]] = {503: {"description": "The engine does not run."}}

    @app.get("/health", responses=stopped, response_class=Response)
    @app.get("/ping", responses=stopped, response_class=Response)
    async def health() -> Response:
        """Nothing, while the engine runs."""
        return Response(status_code=200 if service.engine.is_running else 503)

    @app.get("/version")
    async def version() -> dict[str, str]:
        """The server's version."""
        return {"version": __version__}

    @app.get(METRICS_ROUTE, response_class=Response)
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=service.metrics.media_type)


def _add_middleware(app: FastAPI, service: Service, *, request_ids: bool) -> None:
    """The one added last comes first: a page must be able to read that its key is wrong."""
    options = service.options
    app.add_middleware(BodyLimit, most=options.max_body_bytes)
    if options.keys:
        metrics = frozenset[str]() if options.protect_metrics else {METRICS_ROUTE}
        app.add_middleware(ApiKeys, keys=options.keys, open_routes=OPEN_ROUTES | metrics)
    if options.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.allowed_origins,
            allow_methods=options.allowed_methods or ["*"],
            allow_headers=options.allowed_headers or ["*"],
            allow_credentials=options.allow_credentials,
            expose_headers=[REQUEST_ID],
        )
    if request_ids:
        app.add_middleware(RequestIds, make=options.enable_request_id_headers)
    if options.root_path:
        app.add_middleware(RootPath, root_path=options.root_path.rstrip("/"))


async def _answer_error(request: Request, exception: Exception) -> Response:
    """What went wrong, in OpenAI's shape."""
    error = as_api_error(exception)
    if isinstance(exception, HTTPException):
        error = _of_routing(request, error)
    elif isinstance(exception, RequestValidationError):
        error = _of_content_type(request, error)
    if error.status == 500 and isinstance(exception, QuireError):  # uvicorn logs all others
        logger.error("%s %s failed", request.method, request.url.path, exc_info=exception)
    response = JSONResponse(error_body(error), error.status)
    MutableHeaders(raw=response.raw_headers).update(error.headers)
    return response


def _of_routing(request: Request, error: ApiError) -> ApiError:
    where = f"{request.method} {request.url.path}"
    told = {
        400: "The body is JSON of too many levels, or of too long numbers. Send one JSON object.",
        404: f"There is no route {where}. GET /openapi.json lists those there are.",
        405: f"{where} is not allowed: the route takes {error.headers.get('Allow', 'others')}.",
    }
    if error.status == 404 and request.url.path.endswith((LOAD_ADAPTER, UNLOAD_ADAPTER)):
        told[404] += f" This one is there on a server started with {ADAPTER_VARIABLES[0]}=1."
    message = told.get(error.status, error.message)
    return ApiError(error.status, message, headers=error.headers)


def _of_content_type(request: Request, error: ApiError) -> ApiError:
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return error
    return bad_request(f"Content-Type is {given!r}: send JSON, as `application/json`.")


def _card(service: Service, name: str) -> dict[str, Any]:
    """A model as OpenAI describes one, with the permissions it once had."""
    permission = {
        "id": f"modelperm-{name}",
        "object": "model_permission",
        "created": service.created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "quire",
        "root": service.root,
        "parent": None,
        "max_model_len": service.engine.max_model_len,
        "permission": [permission],
    }


def _adapter_card(service: Service, adapter: ServedAdapter) -> dict[str, Any]:
    request = adapter.request
    own = {
        "created": adapter.created,
        "root": request.lora_path,
        "parent": request.base_model_name or service.model_names[0],
    }
    return _card(service, request.lora_name) | own


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": ERRORS[status], "content": content} for status in statuses}


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, with this server's errors in place of FastAPI's own."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes
        )
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        schemas["Error"] = ERROR_SCHEMA
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        app.openapi_schema = schema
    return app.openapi_schema
