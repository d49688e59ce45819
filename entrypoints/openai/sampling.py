"""A request's sampling parameters as the engine's."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ... import BeamSearchParams, RequestOutputKind, SamplingParams
from .errors import bad_request
from .protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest, ResponseFormat

_SHARED = (
    "n",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "prompt_logprobs",
)
_BEAM = ("ignore_eos", "length_penalty", "early_stopping", "include_stop_str_in_output")
_BEAM += ("skip_special_tokens",)
_NOT_IN_BEAM = (
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "top_p", "top_k", "min_p"),
    *("seed", "stop", "stop_token_ids", "min_tokens", "spaces_between_special_tokens"),
    *("logit_bias", "allowed_token_ids", "bad_words", "prompt_logprobs", "logprobs"),
    *("response_format", "structured_outputs", "priority", "tools", "stream"),
)
"""What a beam search has no place for."""
_NEUTRAL_IN_BEAM: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "stop": ([], ""),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "logit_bias": ({},),
}
"""Values, besides the defaults, that change nothing."""


def completion_params(request: CompletionRequest, defaults: SamplingParams) -> SamplingParams:
    """What `/v1/completions` asks for. Raises ApiError or OptionError."""
    if request.best_of is not None and request.best_of != request.n:
        raise bad_request(
            f"best_of={request.best_of} must be n={request.n}: all choices are returned. Leave it "
            "out, or use use_beam_search for the likeliest outputs.",
            "best_of",
        )
    if request.max_tokens == 0 and not request.echo:
        raise bad_request(
            "max_tokens=0 makes nothing: it needs echo=true. Ask for 1 or more.", "max_tokens"
        )
    own: dict[str, Any] = {"max_tokens": max(request.max_tokens, 1), "logprobs": request.logprobs}
    if request.echo and request.prompt_logprobs is None:
        own["prompt_logprobs"] = request.logprobs
    return _params(request, defaults, structure_of(request), own)


def chat_params(
    request: ChatCompletionRequest,
    defaults: SamplingParams,
    forced: dict[str, Any] | None,
    *,
    special_tokens: bool,
) -> SamplingParams:
    """What `/v1/chat/completions` asks for. Raises ApiError or OptionError.

    Args:
        forced: the structure that a choice of tools forces, as keywords of
            `StructuredOutputsParams`.
        special_tokens: a parser must see special tokens.
    """
    if request.top_logprobs is not None and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs=true.", "top_logprobs")
    own: dict[str, Any] = {"max_tokens": max_tokens(request)}
    own["logprobs"] = (request.top_logprobs or 0) if request.logprobs else None
    if special_tokens:
        own["skip_special_tokens"] = False
    return _params(request, defaults, forced or structure_of(request), own)


def max_tokens(request: ChatCompletionRequest) -> int | None:
    """Most output tokens by either name; None where the model's length is the limit."""
    newer = request.max_completion_tokens
    return request.max_tokens if newer is None else newer


def beam_params(request: GenerationRequest, max_tokens: int) -> BeamSearchParams:
    """The search a request asks for. Raises ApiError for what has no meaning in a search."""
    for name in _unfit_for_beams(request):
        raise bad_request(
            f"{name} cannot be combined with use_beam_search, which looks for the likeliest "
            "outputs of the model. Leave one of them out.",
            name,
        )
    own = {name: getattr(request, name) for name in _BEAM}
    temperature = request.temperature or 0.0
    return BeamSearchParams(
        beam_width=request.n, max_tokens=max_tokens, temperature=temperature, **own
    )


def structure_of(request: GenerationRequest) -> dict[str, Any] | None:
    """The structure a request asks for, as keywords of `StructuredOutputsParams`; or None."""
    structure = _of_format(request.response_format) if request.response_format else None
    if request.structured_outputs is None:
        return structure
    if structure is not None:
        raise bad_request(
            "response_format and structured_outputs both ask for a structure. Leave one out.",
            "structured_outputs",
        )
    return request.structured_outputs


def _of_format(wanted: ResponseFormat) -> dict[str, Any] | None:
    if (wanted.json_schema is not None) != (wanted.type == "json_schema"):
        raise bad_request(
            f"response_format.type={wanted.type!r} "
            + ("needs json_schema." if wanted.json_schema is None else "has no json_schema."),
            "response_format.json_schema",
        )
    if wanted.json_schema is not None:
        return {"json": wanted.json_schema.schema_}
    return {"json_object": True} if wanted.type == "json_object" else None


def _params(
    request: GenerationRequest,
    defaults: SamplingParams,
    structure: dict[str, Any] | None,
    own: dict[str, Any],
) -> SamplingParams:
    for name in ("length_penalty", "early_stopping"):
        if getattr(request, name) != type(request).model_fields[name].default:
            raise bad_request(f"{name} needs use_beam_search=true. Leave it out.", name)
    given = {name: getattr(request, name) for name in _SHARED if name in request.model_fields_set}
    if structure is not None:
        own["structured_outputs"] = structure
    kind = RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
    return dataclasses.replace(defaults, **(given | own), output_kind=kind)


def _unfit_for_beams(request: GenerationRequest) -> Iterator[str]:
    for name in _NOT_IN_BEAM:
        field = type(request).model_fields.get(name)
        if field is None or name not in request.model_fields_set:
            continue
        value = getattr(request, name)
        if value != field.default and value not in _NEUTRAL_IN_BEAM.get(name, ()):
            yield name
