"""Text to token ids and back, for clients that count tokens."""

import asyncio
from collections.abc import Sequence
from typing import Any

from .conversation import template_options
from .encoding import decode, encode, tokenizer_of
from .errors import bad_request
from .protocol import DetokenizeRequest, TokenizeRequest
from .service import Service


async def tokenize(service: Service, request: TokenizeRequest) -> dict[str, Any]:
    """Answers `/tokenize`. Raises ApiError, or what the chat template does."""
    service.find_model(request.model)
    tokens = await _tokens(service, request)
    strings = None
    if request.return_token_strs:
        strings = tokenizer_of(service).convert_ids_to_tokens(tokens)
    return {
        "count": len(tokens),
        "max_model_len": service.engine.max_model_len,
        "tokens": tokens,
        "token_strs": strings,
    }


async def detokenize(service: Service, request: DetokenizeRequest) -> dict[str, Any]:
    """Answers `/detokenize`. Raises ApiError."""
    service.find_model(request.model)
    size = len(tokenizer_of(service))
    outside = next((token for token in request.tokens if token >= size), None)
    if outside is not None:
        raise bad_request(
            f"tokens has {outside}, but the tokenizer has 0 to {size - 1} only.", "tokens"
        )
    text = await asyncio.to_thread(decode, service, request.tokens, skip_special_tokens=False)
    return {"prompt": text}


async def _tokens(service: Service, request: TokenizeRequest) -> Sequence[int]:
    if request.messages is None:
        special = request.add_special_tokens is not False
        [tokens] = await encode(service, [request.prompt or ""], add_special_tokens=special)
        return tokens
    if request.add_special_tokens:
        raise bad_request(
            "add_special_tokens=true has no place beside messages: the chat template writes the "
            "special tokens. Leave it out.",
            "add_special_tokens",
        )
    tools = [tool.model_dump(exclude_unset=True) for tool in request.tools or ()]
    options = template_options(service, request, tools or None)
    prompt = await service.chat_prompt(**options)
    return prompt["prompt_token_ids"]
