"""Log-probabilities in the shapes of completions and of chats."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ... import Logprob

Entry = Mapping[int, Logprob]
"""The log-probabilities at one token: its own and those asked for, by token id."""

LOWEST = -9999.0
"""Stands for minus infinity, which JSON has not."""
_UNKNOWN_CHARACTER = "\ufffd"


@dataclasses.dataclass(frozen=True, slots=True)
class TokenNames:
    """How tokens are told to clients."""

    tokenizer: Any
    """A tokenizer of `transformers`, or None."""
    as_ids: bool
    """Every token is `token_id:ID`."""

    def text(self, token: int, entry: Logprob) -> str:
        """The text of a token; its id where it has none."""
        if self.as_ids or entry.decoded_token is None:
            return f"token_id:{token}"
        return entry.decoded_token

    def bytes(self, token: int, entry: Logprob) -> list[int] | None:
        """Its bytes in UTF-8, of which characters may need more than one token has."""
        text = entry.decoded_token
        if text is None:
            return None
        if _UNKNOWN_CHARACTER in text and self.tokenizer is not None:
            spelled = self.tokenizer.convert_ids_to_tokens(token)
            found = _raw_bytes(spelled) if isinstance(spelled, str) else None
            if found is not None:
                return list(found)
        return list(text.encode("utf-8", "replace"))


def completion_logprobs(
    tokens: Sequence[int], entries: Sequence[Entry | None], names: TokenNames, offset: int = 0
) -> dict[str, Any]:
    """The `logprobs` of a completion. `offset` is where the first token begins in the text.

    An entry is None for the first token of a prompt, of which nothing is known.
    """
    texts: list[str] = []
    own: list[float | None] = []
    top: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for token, entry in zip(tokens, entries, strict=True):
        known = Logprob(LOWEST, None, _spelling(names, token)) if entry is None else entry[token]
        texts.append(names.text(token, known))
        own.append(None if entry is None else _finite(known.logprob))
        top.append(None if entry is None else _by_text(entry, names))
        offsets.append(offset)
        offset += len(known.decoded_token or "")
    return {"text_offset": offsets, "token_logprobs": own, "tokens": texts, "top_logprobs": top}


def chat_logprobs(
    tokens: Sequence[int], entries: Sequence[Entry], asked: int, names: TokenNames
) -> dict[str, Any]:
    """The `logprobs` of a chat, with the `asked` likeliest tokens at each; -1 is all there are."""
    content: list[dict[str, Any]] = []
    for token, entry in zip(tokens, entries, strict=True):
        likely = sorted(entry.items(), key=_by_rank)
        shown = likely if asked == -1 else likely[:asked]
        top = [_described(other, logprob, names) for other, logprob in shown]
        content.append(_described(token, entry[token], names) | {"top_logprobs": top})
    return {"content": content}


def prompt_logprobs(entries: Iterable[Entry | None]) -> list[dict[str, Any] | None]:
    """Those of a prompt, by token id."""
    return [
        None
        if entry is None
        else {
            str(token): {
                "logprob": _finite(one.logprob),
                "rank": one.rank,
                "decoded_token": one.decoded_token,
            }
            for token, one in entry.items()
        }
        for entry in entries
    ]


def _described(token: int, entry: Logprob, names: TokenNames) -> dict[str, Any]:
    return {
        "token": names.text(token, entry),
        "logprob": _finite(entry.logprob),
        "bytes": names.bytes(token, entry),
    }


def _by_rank(item: tuple[int, Logprob]) -> tuple[float, int]:
    token, entry = item
    return -entry.logprob, token


def _by_text(entry: Entry, names: TokenNames) -> dict[str, float]:
    """Several tokens may have one text: it gets the likeliest's."""
    found: dict[str, float] = {}
    for token, one in entry.items():
        text = names.text(token, one)
        found[text] = max(_finite(one.logprob), found.get(text, LOWEST))
    return found


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)


def _spelling(names: TokenNames, token: int) -> str | None:
    return None if names.tokenizer is None else names.tokenizer.decode([token])


def _raw_bytes(spelled: str) -> bytes | None:
    """The bytes of a token as a vocabulary spells it: `<0xE2>`, or a character a byte."""
    if len(spelled) == 6 and spelled.startswith("<0x") and spelled.endswith(">"):
        return bytes.fromhex(spelled[3:5])
    alphabet = _byte_alphabet()
    if all(character in alphabet for character in spelled):
        return bytes(alphabet[character] for character in spelled)
    return None


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """How byte-level vocabularies write bytes: printable ones as they are, others from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    alphabet = {chr(byte): byte for byte in plain}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}
