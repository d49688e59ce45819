"""What each token adds to a text, as bytes."""

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class PieceTable(dict[int, bytes]):
    """From token id to the UTF-8 bytes it adds to a text that has begun; filled on first use.

    The texts of language models are the plain concatenation of their tokens' bytes, so a stream is
    decoded with this table and a UTF-8 decoder, in amortized constant time a token. Where tokens
    spell invalid UTF-8, valid characters before and after it are kept.
    """

    def __init__(
        self, backend: "Backend", *, skip_special_tokens: bool, spaces_between_special_tokens: bool
    ) -> None:
        super().__init__()
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        special = (token for token, entry in added.items() if entry.special)
        self.hidden: frozenset[int] = frozenset(special if skip_special_tokens else ())
        """Tokens that never add anything."""
        self._bare = frozenset(() if spaces_between_special_tokens else added)
        kinds = _decoder_kinds(backend.decoder)
        self._byte_fallback = "ByteFallback" in kinds
        self._alphabet = _byte_alphabet() if "ByteLevel" in kinds else None

    def __missing__(self, token: int) -> bytes:
        piece = self[token] = self._exact(token, first=False)
        return piece

    def first(self, token: int) -> bytes:
        """The bytes of a token that begins a text: some tokenizers drop its leading space."""
        return self._exact(token, first=True)

    def _exact(self, token: int, first: bool) -> bytes:
        name = self._backend.id_to_token(token)
        if name is None or token in self.hidden:  # models pad their vocabulary with unused ids
            return b""
        if token in self._bare:
            return name.encode()
        if self._alphabet is not None:
            return _from_alphabet(name, self._alphabet)
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(name)):
            return bytes.fromhex(match[1])
        return self._decoded(token, first).encode()

    def _decoded(self, token: int, first: bool) -> str:
        """By the tokenizer's own decoder; within a text it is what a second such token adds."""
        once = self._backend.decode([token], skip_special_tokens=False)
        twice = self._backend.decode([token, token], skip_special_tokens=False)
        return twice[len(once) :] if twice.startswith(once) and not first else once


def _decoder_kinds(decoder: Any) -> set[str]:
    """Names of the steps of a decoder, such as {"ByteLevel"}."""
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {step["type"] for step in state.get("decoders", [state])}


def _byte_alphabet() -> dict[str, int]:
    """The printable characters that stand for bytes in a byte-level BPE vocabulary (GPT-2's)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


def _from_alphabet(name: str, alphabet: dict[str, int]) -> bytes:
    """The bytes a token's name stands for; one with any other character is meant literally."""
    try:
        return bytes(alphabet[character] for character in name)
    except KeyError:
        return name.encode()
