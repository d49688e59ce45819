"""Prompts as requests have them, as the engine takes them."""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

from .errors import ApiError, bad_request
from .protocol import CompletionRequest, GenerationRequest
from .service import Service


@dataclasses.dataclass(frozen=True, slots=True)
class EnginePrompt:
    """A prompt for the engine."""

    text: str | None
    """None where the client sent token ids."""
    token_ids: list[int] | None
    """None where the engine may encode the text."""
    cache_salt: str | None = None
    media: Any = None
    """Pictures that the engine has read; None where there are none."""

    def as_dict(self) -> dict[str, Any]:
        """In the form of the engine's prompts."""
        return {
            "prompt": self.text,
            "prompt_token_ids": self.token_ids,
            "cache_salt": self.cache_salt,
            "multi_modal_data": self.media,
        }


async def completion_prompts(service: Service, request: CompletionRequest) -> list[EnginePrompt]:
    """The prompts of a request. Raises ApiError, where there are too many or none."""
    given = _listed(request.prompt)
    if not given:
        raise bad_request("prompt=[] holds no prompt. Give text or token ids.", "prompt")
    most = service.options.max_prompts
    if len(given) > most:
        raise bad_request(f"prompt has {len(given)} prompts, but {most} are allowed.", "prompt")
    texts = [one for one in given if isinstance(one, str)]
    # of several, a stream tells the mistakes before it begins
    special, several = request.add_special_tokens, request.stream and len(given) > 1
    if not texts or (special and not several and request.truncate_prompt_tokens is None):
        return [_prompt(service, request, one, None) for one in given]
    encoded = iter(await encode(service, texts, add_special_tokens=special))
    prompts = [
        _prompt(service, request, one, next(encoded) if isinstance(one, str) else None)
        for one in given
    ]
    _check_lengths(service, prompts)
    return prompts


def truncated(
    service: Service, request: GenerationRequest, token_ids: list[int], max_tokens: int | None
) -> list[int]:
    """What `truncate_prompt_tokens` leaves of a prompt."""
    most = request.truncate_prompt_tokens
    if most is None:
        return token_ids
    if most == -1:
        most = max(service.engine.max_model_len - (max_tokens or 1), 1)
    if len(token_ids) <= most:
        return token_ids
    return (
        token_ids[:most]
        if request.truncation_side == "right"
        else token_ids[len(token_ids) - most :]
    )


def tokenizer_of(service: Service) -> Any:
    """The tokenizer of `transformers`. Raises ApiError without one."""
    tokenizer = service.engine.get_tokenizer()
    if tokenizer is None:
        raise ApiError(
            400, "This server has no tokenizer (--skip-tokenizer-init): it takes token ids only."
        )
    return tokenizer


async def encode(
    service: Service, texts: Sequence[str], *, add_special_tokens: bool
) -> list[list[int]]:
    """The token ids of texts, made beside the event loop."""
    tokenizer = tokenizer_of(service)
    for text in texts:
        _check_text(text)

    def work() -> list[list[int]]:
        special = add_special_tokens
        return [tokenizer.encode(one, add_special_tokens=special, verbose=False) for one in texts]

    return await asyncio.to_thread(work)


def decode(service: Service, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    """The text of token ids, spelled exactly."""
    return tokenizer_of(service).decode(
        list(token_ids),
        skip_special_tokens=skip_special_tokens,
        clean_up_tokenization_spaces=False,
    )


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise bad_request(
            f"prompt has half of a character at {error.start}. Decode the text again.", "prompt"
        ) from error


def _listed(prompt: str | Sequence[Any]) -> Sequence[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    single = bool(prompt) and isinstance(prompt[0], int)
    return [list(prompt)] if single else list(prompt)


def _prompt(
    service: Service, request: CompletionRequest, given: str | list[int], ids: list[int] | None
) -> EnginePrompt:
    text = given if isinstance(given, str) else None
    token_ids = ids if isinstance(given, str) else given
    if token_ids is not None:
        whole = token_ids
        token_ids = truncated(service, request, whole, request.max_tokens)
        text = text if len(token_ids) == len(whole) else None
    return EnginePrompt(text, token_ids, request.cache_salt)


def _check_lengths(service: Service, prompts: Sequence[EnginePrompt]) -> None:
    most = service.engine.max_model_len - 1
    for index, prompt in enumerate(prompts):
        length = len(prompt.token_ids or ())
        if not 0 < length <= most:
            raise bad_request(
                f"prompt[{index}] has {length} tokens, but a prompt of this model has 1 to {most}.",
                "prompt",
            )
