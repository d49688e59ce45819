"""Prompts in every form that users write them, made into one."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import PromptError, nearest

if TYPE_CHECKING:
    from .adapter_arrays import LoadedAdapter
    from .tokenizer import Tokenizer

KEYS = ("prompt", "prompt_token_ids", "cache_salt")
_LATER = ("multi_modal_data", "mm_processor_kwargs", "multi_modal_uuids", "prompt_embeds")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt, tokenized."""

    text: str | None
    token_ids: list[int]
    salt: bytes = b""
    """Prompts of different salts never share cached pages."""
    adapter: "LoadedAdapter | None" = None
    """What it is to be completed with; None is the model alone."""


def is_single(prompts: Any) -> bool:
    """Whether `prompts` is one prompt rather than a list of them."""
    if isinstance(prompts, str | Mapping):
        return True
    return bool(prompts) and all(_is_token(token) for token in prompts)


def parse_prompts(
    prompts: Any, tokenizer: "Tokenizer | None", *, add_special_tokens: bool = True
) -> list[Prompt]:
    """Texts, token ids, dicts, or lists of those, as a list of `Prompt`. Raises PromptError."""
    if hasattr(prompts, "tolist"):  # numpy and jax arrays of token ids
        prompts = prompts.tolist()
    if not isinstance(prompts, str | Mapping | Sequence) or isinstance(prompts, bytes):
        raise PromptError(
            f"a prompt is text, a list of token ids or a dict, not a {type(prompts).__name__}."
        )
    if not is_single(prompts):
        return [parse_prompt(one, tokenizer, add_special_tokens) for one in prompts]
    return [parse_prompt(prompts, tokenizer, add_special_tokens)]


def parse_prompt(
    prompt: Any, tokenizer: "Tokenizer | None", add_special_tokens: bool = True
) -> Prompt:
    """One prompt: text, token ids, or a dict with `prompt` or `prompt_token_ids`."""
    if isinstance(prompt, str):
        return Prompt(prompt, _encode(prompt, tokenizer, add_special_tokens))
    if isinstance(prompt, Mapping):
        return _parse_dict(prompt, tokenizer, add_special_tokens)
    if isinstance(prompt, Sequence) and all(_is_token(token) for token in prompt):
        return Prompt(None, [int(token) for token in prompt])
    raise PromptError(
        f"{_short(prompt)} is no prompt: give text, a list of token ids, or a dict with one of "
        f"{', '.join(KEYS[:2])}."
    )


def check_prompt(prompt: Prompt, *, vocab_size: int, max_model_len: int) -> None:
    """Raises PromptError where the model cannot take the prompt."""
    length = len(prompt.token_ids)
    if length == 0:
        raise PromptError("the prompt is empty: it needs at least one token.")
    if length >= max_model_len:
        raise PromptError(
            f"the prompt has {length} tokens, but max_model_len={max_model_len} allows at most "
            f"{max_model_len - 1} and one of output. Shorten it, or raise max_model_len if the "
            "model can."
        )
    low, high = min(prompt.token_ids), max(prompt.token_ids)
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise PromptError(f"token id {bad} is out of range: allowed are 0 to {vocab_size - 1}.")


def _parse_dict(
    prompt: Mapping[str, Any], tokenizer: "Tokenizer | None", add_special_tokens: bool
) -> Prompt:
    for key, value in prompt.items():
        if key in _LATER and value is not None:
            raise PromptError(f"{key} is not supported: this engine serves text models only.")
        if key not in KEYS and key not in _LATER:
            hint = nearest(str(key), KEYS)
            raise PromptError(f"unknown key {key!r} in a prompt.{hint} Allowed: {', '.join(KEYS)}.")
    text, ids, salt = (prompt.get(key) for key in KEYS)
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise PromptError(f"cache_salt={salt!r} must be text that is not empty.")
    if ids is None and text is None:
        raise PromptError("a dict prompt needs one of prompt and prompt_token_ids.")
    inner = parse_prompt(ids if ids is not None else text, tokenizer, add_special_tokens)
    return Prompt(text if text is not None else inner.text, inner.token_ids, (salt or "").encode())


def _encode(text: str, tokenizer: "Tokenizer | None", add_special_tokens: bool) -> list[int]:
    if tokenizer is None:
        raise PromptError(
            "the engine has no tokenizer (skip_tokenizer_init=True): give token ids, not text."
        )
    return tokenizer.encode(text, add_special_tokens=add_special_tokens)


def _is_token(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
