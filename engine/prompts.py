"""Prompts in every form that users write them, made into one."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import PromptError, nearest
from .media import Medium, Opened, placed
from .placeholders import encode_marked, expand, expand_numbered
from .reading import Job, Reading

if TYPE_CHECKING:
    from .adapter_arrays import LoadedAdapter
    from .media_inputs import MediaInputs
    from .tokenizer import Tokenizer

KEYS = ("prompt", "prompt_token_ids", "cache_salt", "multi_modal_data", "mm_processor_kwargs")
_LATER = ("multi_modal_uuids", "prompt_embeds")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt, tokenized."""

    text: str | None
    token_ids: list[int]
    salt: bytes = b""
    """Prompts of different salts never share cached pages."""
    adapter: "LoadedAdapter | None" = None
    """What it is to be completed with; None is the model alone."""
    media: tuple[Medium, ...] = ()
    """In the order of their placeholder tokens."""


def is_single(prompts: Any) -> bool:
    """Whether `prompts` is one prompt rather than a list of them."""
    if isinstance(prompts, str | Mapping):
        return True
    return bool(prompts) and all(_is_token(token) for token in prompts)


@dataclasses.dataclass(frozen=True)
class PromptReader:
    """Reads prompts in every form for one model."""

    tokenizer: "Tokenizer | None"
    media: "MediaInputs | None" = None
    """None for a model of text alone."""

    def read(self, prompts: Any) -> Reading:
        """Texts, token ids, dicts, or lists of those. Raises PromptError for anything else."""
        if hasattr(prompts, "tolist"):  # numpy and jax arrays of token ids
            prompts = prompts.tolist()
        if not isinstance(prompts, str | Mapping | Sequence) or isinstance(prompts, bytes):
            raise PromptError(
                f"a prompt is text, a list of token ids or a dict, not a {type(prompts).__name__}."
            )
        each = [prompts] if is_single(prompts) else prompts
        jobs = [functools.partial(self.read_one, one) for one in each]
        return self.reading(jobs, with_media=any(map(has_media, each)))

    def reading(self, jobs: Sequence[Job], *, with_media: bool) -> Reading:
        """What `jobs` read, which takes a while where prompts have media."""
        threads = self.media.reading if self.media is not None and with_media else None
        return Reading(jobs, threads)

    def read_one(self, prompt: Any, *, chat: bool = False) -> Prompt:
        """One prompt: text, token ids, or a dict. Raises PromptError or MediaError.

        Args:
            chat: it is a conversation, whose template has put special tokens where they belong.
        """
        if isinstance(prompt, Mapping):
            return self._read_dict(prompt, chat)
        if isinstance(prompt, str):
            return self._made(prompt, None, [], chat)
        return self._made(None, _token_ids(prompt), [], chat)

    def _read_dict(self, prompt: Mapping[str, Any], chat: bool) -> Prompt:
        for key, value in prompt.items():
            if key in _LATER and value is not None:
                raise PromptError(f"{key} is not supported. Leave it out.")
            if key not in KEYS and key not in _LATER:
                hint = nearest(str(key), KEYS)
                allowed = ", ".join(KEYS)
                raise PromptError(f"unknown key {key!r} in a prompt.{hint} Allowed: {allowed}.")
        text, ids, salt, data, settings = (prompt.get(key) for key in KEYS)
        if salt is not None and (not isinstance(salt, str) or not salt):
            raise PromptError(f"cache_salt={salt!r} must be text that is not empty.")
        if ids is None and text is None:
            raise PromptError("a dict prompt needs one of prompt and prompt_token_ids.")
        known = None if ids is None else _token_ids(ids)
        made = self._made(text, known, self._open(data, settings, chat), chat)
        return dataclasses.replace(made, salt=(salt or "").encode())

    def _open(self, data: Any, settings: Any, chat: bool) -> list[Opened]:
        if data is None:
            return []
        if self.media is None:
            raise PromptError(
                "multi_modal_data is given, but this model takes text alone. Leave it out, or "
                "choose a model that takes more."
            )
        return self.media.open(data, settings, chat=chat)

    def _made(
        self,
        text: str | None,
        ids: list[int] | None,
        media: list[Opened],
        chat: bool,
    ) -> Prompt:
        """The prompt with as many placeholder tokens as its media have features."""
        if self.media is None:
            encoded = self._encode(text or "", not chat) if ids is None else ids
            return Prompt(text, encoded)

        def encode(piece: str, first: bool) -> list[int]:
            return self._encode(piece, first and not chat)

        kinds = self.media.spec.kinds
        images = kinds.get("image")
        if ids is None and images is not None and images.format.numbered:
            counts = [one.num_tokens for one in media]
            marker, token = images.format.marker, images.token
            ids, places = expand_numbered(text or "", marker, token, counts, encode)
        else:
            cut = {one.format.marker: one.token for one in kinds.values() if one.format.cut}
            known = encode_marked(text or "", cut, encode) if ids is None else ids
            tokens = {name: kind.token for name, kind in kinds.items()}
            ids, places = expand(known, [(one.kind, one.num_tokens) for one in media], tokens)
        return Prompt(text, ids, media=placed(media, places))

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if self.tokenizer is None:
            raise PromptError(
                "the engine has no tokenizer (skip_tokenizer_init=True): give token ids, not text."
            )
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)


def has_media(prompt: Any) -> bool:
    """Whether a prompt has media to be opened, which takes a while."""
    return isinstance(prompt, Mapping) and prompt.get("multi_modal_data") is not None


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


def _token_ids(prompt: Any) -> list[int]:
    given = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if isinstance(given, Sequence) and all(_is_token(token) for token in given):
        return [int(token) for token in given]
    raise PromptError(
        f"{_short(prompt)} is no prompt: give text, a list of token ids, or a dict with one of "
        f"{', '.join(KEYS[:2])}."
    )


def _is_token(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
