"""`POST /v1/chat/completions`."""

import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ... import RequestOutput, SamplingParams
from .answers import answer_id, check_priority, engine_id, head, token_names
from .chat_choices import ChatChunks, ChatForm, whole_answer
from .conversation import template_options, text_of
from .encoding import EnginePrompt, truncated
from .errors import bad_request
from .protocol import ChatCompletionRequest
from .sampling import beam_params, chat_params, max_tokens, structure_of
from .service import ServedModel, Service
from .streams import EventStream, json_response, last_outputs, unless_gone
from .tools import Toolbox, choose_tools, make_parser


async def create_chat_completion(
    service: Service, request: ChatCompletionRequest, http_request: Request
) -> Response:
    """Answers a request, as a whole or as a stream.

    Raises ApiError, ClientGoneError, or what the engine does.
    """
    own_id = answer_id("chatcmpl", request, http_request)
    if not request.stream or request.use_beam_search:  # which refuses to be streamed
        whole = chat_completion(service, request, own_id)
        return json_response(await unless_gone(http_request.receive, whole))
    asked = await unless_gone(http_request.receive, _read(service, request))
    chunks = ChatChunks(asked.form, head("chat.completion.chunk", own_id, asked.model.name))
    return EventStream([_outputs(service, asked, own_id)], chunks)


async def chat_completion(
    service: Service, request: ChatCompletionRequest, own_id: str
) -> dict[str, Any]:
    """The whole answer to a request, which bears `own_id`.

    Raises ApiError, or what the engine does.
    """
    asked = await _read(service, request)
    if request.use_beam_search:
        output = await _search(service, asked, own_id)
    else:
        [output] = await last_outputs([_outputs(service, asked, own_id)])
    return whole_answer(asked.form, head("chat.completion", own_id, asked.model.name), output)


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """A request that has been read."""

    request: ChatCompletionRequest
    model: ServedModel
    form: ChatForm
    params: SamplingParams | None
    """None for a beam search."""
    prompt: EnginePrompt


async def _read(service: Service, request: ChatCompletionRequest) -> _Asked:
    model = service.find_model(request.model)
    check_priority(service, request)
    toolbox = choose_tools(request, service.options)
    options = template_options(service, request, toolbox.offered)
    form = _form(service, request, toolbox, options["messages"])
    params = None
    if not request.use_beam_search:
        params = chat_params(
            request,
            service.default_params,
            toolbox.structure,
            special_tokens=form.parser().special_tokens,
        )
    return _Asked(request, model, form, params, await _prompt(service, request, options))


def _outputs(service: Service, asked: _Asked, own_id: str) -> AsyncGenerator[RequestOutput, None]:
    assert asked.params is not None, "a beam search is no stream"
    return service.generate(
        asked.prompt.as_dict(),
        asked.params,
        engine_id(own_id, 0),
        priority=asked.request.priority,
        lora_request=asked.model.lora_request,
    )


async def _prompt(
    service: Service, request: ChatCompletionRequest, options: dict[str, Any]
) -> EnginePrompt:
    made = await service.chat_prompt(**options)
    whole, media = made["prompt_token_ids"], made.get("multi_modal_data")
    kept = truncated(service, request, whole, max_tokens(request))
    if media and len(kept) < len(whole):
        raise bad_request(
            f"truncate_prompt_tokens={request.truncate_prompt_tokens} would cut a prompt of "
            f"{len(whole)} tokens that has pictures. Leave it out.",
            "truncate_prompt_tokens",
        )
    text = made["prompt"] if len(kept) == len(whole) else None
    return EnginePrompt(text, kept, request.cache_salt, media)


async def _search(service: Service, asked: _Asked, own_id: str) -> RequestOutput:
    prompt, request = asked.prompt, asked.request
    room = max(service.engine.max_model_len - len(prompt.token_ids or ()), 1)
    params = beam_params(request, max_tokens(request) or room)
    return await service.beam_search(
        prompt.as_dict(), params, engine_id(own_id, 0), lora_request=asked.model.lora_request
    )


def _form(
    service: Service,
    request: ChatCompletionRequest,
    toolbox: Toolbox,
    messages: list[dict[str, Any]],
) -> ChatForm:
    constrained = toolbox.structure is not None or structure_of(request) is not None
    last, role = messages[-1], service.options.response_role
    if not request.add_generation_prompt:
        role = last.get("role", role)
    echoed = request.echo and last.get("role") == role
    return ChatForm(
        request=request,
        parser=lambda: make_parser(toolbox, service.options, constrained=constrained),
        names=token_names(service, request),
        role=role,
        echo=text_of(last.get("content")) if echoed else "",
        finishes_with_calls=toolbox.mode in ("auto", "required"),
        one_call=toolbox.one_call,
    )
