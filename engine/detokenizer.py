"""From the tokens of one sequence to its text, as they come."""

import codecs
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .stop import find_stop, held_back

if TYPE_CHECKING:
    from .sampling_params import SamplingParams
    from .tokenizer import Tokenizer


class IncrementalDetokenizer:
    """The text of one output, token by token.

    Text that was given out never changes: half a character, and what may turn out to be a stop
    string, waits for the tokens that decide it, or for `finish`. The pieces of a stream make up
    the same text as all tokens at once. Without stop strings nothing is decoded until it is asked
    for, so an output that nobody streams is decoded once.
    """

    def __init__(
        self, tokenizer: "Tokenizer", prompt_ids: Sequence[int], params: "SamplingParams"
    ) -> None:
        self._pieces = tokenizer.pieces(
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = any(token not in self._pieces.hidden for token in prompt_ids)
        self._pending: list[int] = []
        self._text = ""
        self._taken = 0
        self._stops = list(params.stop or ())
        self._may_begin = re.compile("|".join({re.escape(stop[0]) for stop in self._stops})).search
        self._keep_stop = params.include_stop_str_in_output
        self._mute = params.min_tokens
        self._held = ""
        self.stop: str | None = None
        """The stop string that ended the text. Tokens after it are ignored."""

    def append(self, ids: Sequence[int]) -> None:
        """Takes the next tokens. With stop strings, `stop` tells right after if one was found."""
        if not self._stops:
            self._pending += ids
            return
        for token in ids:
            if self.stop is not None:
                return
            self._mute -= 1
            self._add(self._decode([token]))

    def finish(self) -> None:
        """No more tokens come: gives out what was held back, half a character as U+FFFD."""
        self._flush()
        if self.stop is None:
            self._add(self._utf8.decode(b"", final=True))
            self._text += self._held
            self._held = ""

    @property
    def text(self) -> str:
        """All text that is certain so far: whole characters, no beginning of a stop string."""
        self._flush()
        return self._text

    def take_delta(self) -> str:
        """What `text` has that the last call did not give; perhaps nothing."""
        text = self.text
        delta = text[self._taken :]
        self._taken = len(text)
        return delta

    def _flush(self) -> None:
        if self._pending:
            self._text += self._decode(self._pending)
            self._pending = []

    def _decode(self, ids: Sequence[int]) -> str:
        pieces = [self._pieces[token] for token in ids]
        if not self._begun:
            first = next(
                (i for i, token in enumerate(ids) if token not in self._pieces.hidden), None
            )
            if first is not None:
                pieces[first] = self._pieces.first(ids[first])
                self._begun = True
        return self._utf8.decode(b"".join(pieces))

    def _add(self, new: str) -> None:
        """Appends text, up to a stop string if it completes one."""
        if not self._held and not self._may_begin(new):
            self._text += new
            return
        window = self._held + new
        found = find_stop(window, self._stops, seen=len(self._held)) if self._mute < 0 else None
        if found is not None:
            start, self.stop = found
            end = start + len(self.stop) if self._keep_stop else start
            self._text += window[:end]
            self._held = ""
            return
        certain = len(window) - held_back(window, self._stops)
        self._text += window[:certain]
        self._held = window[certain:]
