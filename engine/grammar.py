"""Grammars of outputs: compiled once, followed by each sequence that has one. By llguidance."""

import functools
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError
from .structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    from .sampling_params import SamplingParams
    from .tokenizer import Tokenizer

_SECONDS = 5.0
"""A grammar that takes longer to compile is refused."""
_SPACE = r"[ \n\t]{0,32}"
"""White space in JSON: bounded, since some models never stop to write it."""
_GBNF_RULE = r"^\s*[\w-]+\s*::="
_KEPT = 128
"""Compiled grammars that are kept for requests to come."""


class Constraint:
    """Where one sequence stands in its grammar. Plain host state."""

    def __init__(self, matcher: Any, words: int) -> None:
        self._matcher = matcher
        self._words = words

    def copy(self) -> "Constraint":
        return Constraint(self._matcher.deep_copy(), self._words)

    def mask(self) -> np.ndarray:
        """int32 [W]: bit v % 32 of word v / 32 is 1 where token v may be next."""
        from llguidance import numpy as bitmask

        mask = np.zeros((1, self._words), np.int32)
        bitmask.fill_next_token_bitmask(self._matcher, mask, 0)
        return mask[0]

    def accept(self, token: int) -> bool:
        """Goes on by the token sampled. True where the output is complete with it."""
        return not self._matcher.consume_token(token) or self._matcher.is_stopped()


class Grammars:
    """Compiles grammars for one tokenizer. Safe to use from several threads."""

    def __init__(
        self, tokenizer: "Tokenizer | None", vocab_size: int, eos_token_ids: Iterable[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos = sorted(eos_token_ids)
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def check(self, params: "SamplingParams") -> None:
        """Compiles the grammar of a request ahead of it, if it has one. Raises OptionError."""
        if isinstance(params.structured_outputs, StructuredOutputsParams):
            self.constraint(params.structured_outputs)

    def constraint(self, params: StructuredOutputsParams) -> Constraint:
        """The beginning of an output of that form; takes up to 5 seconds where it is new.

        Raises OptionError where the form is malformed or too large.
        """
        if self._tokenizer is None:
            raise OptionError(
                "structured_outputs need a tokenizer, but skip_tokenizer_init=True was given."
            )
        grammar = _grammar(params)
        with self._lock:
            matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = self._compile(grammar)
            with self._lock:
                self._compiled[grammar] = matcher
                if len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
        return Constraint(matcher.deep_copy(), -(-self._vocab_size // 32))

    def _compile(self, grammar: str) -> Any:
        """A matcher at its beginning, made in a thread that is left alone after 5 seconds."""
        made: list[Any] = []
        vocabulary = self._vocabulary  # may take seconds for the first grammar, which is no fault

        def compile_it() -> None:
            from llguidance import LLMatcher

            try:
                matcher = LLMatcher(vocabulary, grammar, log_level=0)
                problem = matcher.get_error()
                made.append(OptionError(_refusal(problem)) if problem else matcher)
            except Exception as error:  # whatever a foreign grammar makes the library raise
                made.append(OptionError(_refusal(str(error))))

        thread = threading.Thread(target=compile_it, name="quire-grammar", daemon=True)
        thread.start()
        thread.join(_SECONDS)
        if not made:
            raise OptionError(_refusal(f"it did not compile within {_SECONDS:g} s"))
        if isinstance(made[0], OptionError):
            raise made[0]
        return made[0]

    @functools.cached_property
    def _vocabulary(self) -> Any:
        from llguidance import hf

        assert self._tokenizer is not None
        eos = self._eos or None
        return hf.from_tokenizer(self._tokenizer.hf, n_vocab=self._vocab_size, eos_token=eos)


def _refusal(problem: str) -> str:
    return f"structured_outputs cannot be followed: {problem.strip()}. Correct or simplify it."


def _grammar(params: StructuredOutputsParams) -> str:
    """The form in llguidance's own notation. Raises OptionError."""
    from llguidance import LLMatcher, gbnf_to_lark

    try:
        if params.json is not None or params.json_object:
            return _json_grammar(params)
        if params.regex is not None:
            return LLMatcher.grammar_from_regex(params.regex)
        if params.choice is not None:
            words = " | ".join(json.dumps(choice) for choice in params.choice)
            return LLMatcher.grammar_from_lark(f"start: {words}")
        text = params.grammar or ""
        if re.search(_GBNF_RULE, text, re.MULTILINE) is not None:
            text = gbnf_to_lark.any_to_lark(text)
        elif re.search(r"^\s*start\s*:", text, re.MULTILINE) is None:
            raise ValueError("a grammar in Lark's notation needs a rule named start")
        return LLMatcher.grammar_from_lark(text)
    except Exception as error:  # whatever foreign text makes the library raise
        raise OptionError(_refusal(str(error))) from error


def _json_grammar(params: StructuredOutputsParams) -> str:
    from llguidance import LLMatcher

    schema: dict[str, Any] = {"type": "object"}
    if isinstance(params.json, Mapping):
        schema = {**params.json}
    space = {"whitespace_pattern": _SPACE}
    schema["x-guidance"] = (
        {"whitespace_flexible": False} if params.disable_any_whitespace else space
    )
    return LLMatcher.grammar_from_json_schema(json.dumps(schema))
