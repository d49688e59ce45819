"""What a user may ask of the sampler: one `SamplingParams` a request, or `BeamSearchParams`."""

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from ..errors import OptionError
from .structured_outputs import StructuredOutputsParams
from .validation import (
    TOKEN_ID,
    Range,
    Unsupported,
    flag,
    integer,
    number,
    refused,
    strict_options,
    strings,
    token_ids,
)

GREEDY_BELOW = 1e-5
"""Temperatures below this mean greedy decoding."""
MIN_TEMPERATURE = 0.01
"""Temperatures between greedy and this are raised to it: logits over less overflow."""
MAX_BIAS = 100.0
MOST_TOKENS = 2**31 - 1
"""More than any vocabulary has; a top_k beyond it keeps all."""

_LEAVE_OUT = "Leave it out."
_UNSUPPORTED = {
    "best_of": Unsupported(1, "Pass n for several outputs, or BeamSearchParams for a search."),
    "use_beam_search": Unsupported(False, "Pass BeamSearchParams(beam_width=..., max_tokens=...)."),
    "early_stopping": Unsupported(False, "It belongs to BeamSearchParams."),
    "length_penalty": Unsupported(1.0, "It belongs to BeamSearchParams."),
    "guided_decoding": Unsupported(None, "Pass structured_outputs=StructuredOutputsParams(...)."),
    "logits_processors": Unsupported([], "Use logit_bias, allowed_token_ids or bad_words."),
    "logprob_token_ids": Unsupported([], "Pass logprobs=-1 and pick the tokens from the result."),
    "prompt_logprob_token_ids": Unsupported(
        [], "Pass prompt_logprobs=-1 and pick from the result."
    ),
    "prompt_logprob_token_start": Unsupported(0, "Pass prompt_logprobs and cut the result."),
    "truncate_prompt_tokens": Unsupported(-1, "Cut the prompt before passing it."),
    "prompt_token_ids": Unsupported(None, 'Pass {"prompt_token_ids": [...]} as the prompt.'),
    "thinking_token_budget": Unsupported(None, "Bound the output with max_tokens."),
    "repetition_detection": Unsupported(None, "Use repetition_penalty or frequency_penalty."),
    "skip_reading_prefix_cache": Unsupported(False, "Call reset_prefix_cache() first."),
    "flat_logprobs": Unsupported(False, _LEAVE_OUT),
    "stream_interval": Unsupported(1, _LEAVE_OUT),
    "extra_args": Unsupported({}, _LEAVE_OUT),
    "watermarking": Unsupported(None, _LEAVE_OUT),
    "routed_experts_prompt_start": Unsupported(None, _LEAVE_OUT),
    "trace_decode_token_ids": Unsupported(None, _LEAVE_OUT),
}
_BEAM_UNSUPPORTED = {
    "structured_outputs": Unsupported(None, "Beams are searched over the whole vocabulary."),
}
_TEMPERATURE = Range("Pass 0 for greedy decoding, 1 for the model's own distribution.", 0, 2)
_BEAM_COUNT = Range("Pass 1 or more.", 1)
_LENGTH_PENALTY = Range("Pass 1 to score by the mean log-probability, 0 by the sum.")
_LOGPROBS = Range("Pass 0 for the token itself, k for k likely ones too, -1 for all.", -1)
_BIAS = Range("Values beyond +-100 count as +-100.")
_NUMBERS = {
    "presence_penalty": Range("Pass 0 for no penalty.", -2, 2),
    "frequency_penalty": Range("Pass 0 for no penalty.", -2, 2),
    "repetition_penalty": Range("Pass 1 for no penalty.", 0, open_low=True),
    "temperature": _TEMPERATURE,
    "top_p": Range("Pass 1 to keep every token, or top_k=1 to keep one.", 0, 1, open_low=True),
    "min_p": Range("Pass 0 to keep every token.", 0, 1),
}
_COUNTS = {
    "n": Range("Pass n=1 for one output.", 1, 16384),
    "top_k": Range("Pass 0 to keep every token.", -1),
    "min_tokens": Range("Pass 0 for no minimum.", 0),
}
_OPTIONAL_COUNTS = {
    "seed": Range("Pass None for a new seed each time.", -1, 2**63 - 1),
    "max_tokens": Range("Pass None to go on up to the model's length.", 1),
    "logprobs": _LOGPROBS,
    "prompt_logprobs": _LOGPROBS,
}
_FROM_GENERATION_CONFIG = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


class RequestOutputKind(enum.Enum):
    """What each output of a streamed request holds."""

    CUMULATIVE = 0
    """Everything so far."""
    DELTA = 1
    """What is new since the last output."""
    FINAL_ONLY = 2
    """Nothing until the request is finished, then everything."""


@strict_options(_UNSUPPORTED)
@dataclasses.dataclass(kw_only=True, repr=False)
class SamplingParams:
    """How the tokens of one request are chosen and when it ends. Keywords only.

    Raises `OptionError` for a value out of range or of the wrong type, an unknown keyword, or
    parameters that contradict each other. Fields assigned later are checked by `clone`.
    """

    n: int = 1
    """Outputs for the prompt, 1 to 16384."""
    presence_penalty: float = 0.0
    """[-2, 2], off the logit of every token that is in the output."""
    frequency_penalty: float = 0.0
    """[-2, 2], off the logit of a token for each time it is in the output."""
    repetition_penalty: float = 1.0
    """Above 0: divides positive, multiplies negative logits of tokens in prompt or output."""
    temperature: float = 1.0
    """[0, 2]: below 1e-5 is greedy (and then top_p, top_k, min_p are off), up to 0.01 is 0.01."""
    top_p: float = 1.0
    """(0, 1]: keep the fewest likely tokens whose probabilities sum to this."""
    top_k: int = 0
    """Keep this many likely tokens; 0 or -1 keeps all."""
    min_p: float = 0.0
    """[0, 1]: drop tokens less probable than this times the most probable one."""
    seed: int | None = None
    """0 to 2**63 - 1: the same seed gives the same tokens. None or -1: a new one each time."""
    stop: str | list[str] | None = None
    """Strings that end the output, which is cut before them. A list once constructed."""
    stop_token_ids: list[int] | None = None
    """Tokens that end the output, and stay in it. A list once constructed."""
    ignore_eos: bool = False
    """Go on after an end-of-sequence token."""
    max_tokens: int | None = 16
    """Most output tokens; None: up to the model's length."""
    min_tokens: int = 0
    """Output tokens before anything but the length may end it."""
    logprobs: int | None = None
    """Log-probabilities of this many likely tokens, and the sampled one, at each output token.
    0: of the sampled one only. -1: of the whole vocabulary."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    detokenize: bool = True
    """False: token ids only, no text."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    spaces_between_special_tokens: bool = True
    """False: no space before added tokens, where a tokenizer joins tokens with spaces."""
    include_stop_str_in_output: bool = False
    """Keep the stop string at the end of the text, and the end-of-sequence token where special
    tokens are not left out."""
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    """What streamed outputs hold."""
    logit_bias: Mapping[int, float] | Mapping[str, float] | None = None
    """Added to the logits of tokens, by id; values beyond +-100 become +-100."""
    allowed_token_ids: list[int] | None = None
    """Only these tokens may be sampled."""
    bad_words: list[str] | None = None
    """Strings the output may not contain. A list once constructed."""
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None
    """The form the output must have, or a dict of its fields."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_counts()
        self._check_lists()
        for name in _FLAGS:
            flag(name, getattr(self, name))
        self._check_together()

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> Self:
        """The defaults a model's `generation_config.json`, as a dict, asks for.

        Taken as they are, whatever `do_sample` says: temperature, top_p, top_k, min_p,
        repetition_penalty, and max_new_tokens as max_tokens. Raises `OptionError` for bad values.
        """
        given = {ours: config.get(theirs) for theirs, ours in _FROM_GENERATION_CONFIG.items()}
        return cls(**{name: value for name, value in given.items() if value is not None})

    @property
    def greedy(self) -> bool:
        """The most likely token is taken, without chance."""
        return self.temperature < GREEDY_BELOW

    @property
    def needs_counts(self) -> bool:
        """A penalty needs the counts of tokens seen so far."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty)
        return penalties != (0.0, 0.0, 1.0)

    @property
    def needs_bias(self) -> bool:
        """Something is added to, or masked from, the logits of tokens known beforehand."""
        return bool(
            self.logit_bias or self.allowed_token_ids or self.bad_words or self.min_tokens > 0
        )

    def clone(self) -> Self:
        """A copy that shares nothing with this one, checked anew. Raises `OptionError`."""
        return dataclasses.replace(self)

    def validate_for(self, vocab_size: int, max_logprobs: int) -> None:
        """Checks token ids and log-probabilities against a model of `vocab_size` tokens.

        `max_logprobs` is the engine's limit, -1 for none; to ask for all (-1) is always allowed.
        Raises `OptionError`.
        """
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            _check_in_vocabulary(name, getattr(self, name) or (), vocab_size)
        for name in ("logprobs", "prompt_logprobs"):
            _check_logprobs(name, getattr(self, name), vocab_size, max_logprobs)

    def __repr__(self) -> str:
        return _short_repr(self)

    def _check_numbers(self) -> None:
        for name, allowed in _NUMBERS.items():
            setattr(self, name, number(name, getattr(self, name), allowed))
        if self.temperature < GREEDY_BELOW:
            self.temperature = 0.0
        elif self.temperature < MIN_TEMPERATURE:
            self.temperature = MIN_TEMPERATURE

    def _check_counts(self) -> None:
        for name, allowed in _COUNTS.items():
            setattr(self, name, integer(name, getattr(self, name), allowed))
        for name, allowed in _OPTIONAL_COUNTS.items():
            value = getattr(self, name)
            setattr(self, name, None if value is None else integer(name, value, allowed))
        self.top_k = min(max(self.top_k, 0), MOST_TOKENS)
        self.seed = None if self.seed == -1 else self.seed

    def _check_lists(self) -> None:
        self.stop = strings("stop", self.stop)
        self.bad_words = strings("bad_words", self.bad_words)
        self.stop_token_ids = token_ids("stop_token_ids", self.stop_token_ids)
        self.logit_bias = _logit_bias(self.logit_bias)
        if self.allowed_token_ids is not None:
            ids = token_ids("allowed_token_ids", self.allowed_token_ids)
            if not ids:
                remedy = "Pass None to allow every token."
                raise refused("allowed_token_ids", ids, "at least one token id", remedy)
            self.allowed_token_ids = ids
        self.structured_outputs = _structured(self.structured_outputs)
        if not isinstance(self.output_kind, RequestOutputKind):
            names = ", ".join(str(kind) for kind in RequestOutputKind)
            raise refused("output_kind", self.output_kind, f"one of {names}", "Pass one of these.")

    def _check_together(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise OptionError(
                f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}: "
                "it must not be. Lower min_tokens or raise max_tokens."
            )
        if self.stop and not self.detokenize:
            raise OptionError(
                f"stop={self.stop!r} needs the text, but detokenize=False makes none. "
                "Pass detokenize=True, or stop_token_ids in place of stop."
            )
        if self.structured_outputs is not None:
            self._check_structured()
        if self.greedy:
            self._check_greedy()

    def _check_structured(self) -> None:
        for name, off in (("min_tokens", 0), ("allowed_token_ids", None), ("bad_words", [])):
            if getattr(self, name) != off:
                raise OptionError(
                    f"{name}={getattr(self, name)!r} with structured_outputs could leave no token "
                    f"that may follow. Leave {name} out, and say it in the structure."
                )

    def _check_greedy(self) -> None:
        if self.n > 1:
            raise OptionError(
                f"n={self.n} with temperature={self.temperature} would give the same greedy "
                "output each time: n must be 1. Set temperature > 0 or n=1."
            )
        self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0


_FLAGS = tuple(f.name for f in dataclasses.fields(SamplingParams) if f.type is bool)


@strict_options(_BEAM_UNSUPPORTED)
@dataclasses.dataclass(kw_only=True, repr=False)
class BeamSearchParams:
    """A beam search for the most likely outputs, scored as in `transformers`. Keywords only.

    Raises `OptionError` for a value out of range or of the wrong type or an unknown keyword.
    """

    beam_width: int
    """Beams kept at each step, and outputs returned."""
    max_tokens: int
    """Most output tokens."""
    ignore_eos: bool = False
    """Go on after an end-of-sequence token."""
    temperature: float = 0.0
    """[0, 2]: divides the logits before the log-probabilities are taken; 0 is 1."""
    length_penalty: float = 1.0
    """A score is the sum of log-probabilities over the output's length to this power."""
    early_stopping: bool | Literal["never"] = False
    """True: end with `beam_width` finished beams. False: end when, at its present length, no beam
    can do better. "never": end when no beam can do better at any length."""
    include_stop_str_in_output: bool = False
    """Keep the end-of-sequence token in the text."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""

    def __post_init__(self) -> None:
        self.beam_width = integer("beam_width", self.beam_width, _BEAM_COUNT)
        self.max_tokens = integer("max_tokens", self.max_tokens, _BEAM_COUNT)
        self.temperature = number("temperature", self.temperature, _TEMPERATURE)
        self.length_penalty = number("length_penalty", self.length_penalty, _LENGTH_PENALTY)
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            flag(name, getattr(self, name))
        if self.early_stopping != "never" and not isinstance(self.early_stopping, bool):
            remedy = "Pass one of these three."
            raise refused("early_stopping", self.early_stopping, "True, False or 'never'", remedy)

    def __repr__(self) -> str:
        return _short_repr(self)


def _short_repr(params: "SamplingParams | BeamSearchParams") -> str:
    """The fields that differ from an empty or default value."""
    given = [
        f"{field.name}={value!r}"
        for field in dataclasses.fields(params)
        if (value := getattr(params, field.name)) != field.default and value != []
    ]
    return f"{type(params).__name__}({', '.join(given)})"


def _structured(value: object) -> StructuredOutputsParams | None:
    if value is None or isinstance(value, StructuredOutputsParams):
        return value
    if not isinstance(value, Mapping):
        remedy = "Pass StructuredOutputsParams(...), or a dict of its fields."
        raise refused("structured_outputs", value, "a form of the output", remedy)
    return StructuredOutputsParams(**{str(name): field for name, field in value.items()})


def _logit_bias(value: object) -> dict[int, float] | None:
    """Keys as ints, values clamped to +-100."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        remedy = "Pass {token_id: bias}."
        raise refused("logit_bias", value, "a dict of token ids to numbers", remedy)
    return {_bias_key(key): _bias(item) for key, item in value.items()}


def _bias_key(key: object) -> int:
    """A token id; JSON has it as a string of digits."""
    as_int = int(key) if isinstance(key, str) and key.isdecimal() else key
    return integer("logit_bias key", as_int, TOKEN_ID)


def _bias(value: object) -> float:
    if isinstance(value, float) and math.isinf(value):
        return math.copysign(MAX_BIAS, value)
    bias = number("logit_bias value", value, _BIAS)
    return min(max(bias, -MAX_BIAS), MAX_BIAS)


def _check_in_vocabulary(name: str, ids: Iterable[int], vocab_size: int) -> None:
    outside = sorted(token for token in ids if token >= vocab_size)
    if outside:
        raise OptionError(
            f"{name} has the token ids {outside[:5]}: they must be 0 to {vocab_size - 1} for this "
            "model. Remove them, or take ids from the model's own tokenizer."
        )


def _check_logprobs(name: str, asked: int | None, vocab_size: int, max_logprobs: int) -> None:
    limit = vocab_size if max_logprobs == -1 else min(max_logprobs, vocab_size)
    if asked is not None and asked > limit:
        raise OptionError(
            f"{name}={asked} is too many: at most {limit} are allowed, or -1 for the whole "
            "vocabulary. Ask for fewer, or start the engine with a larger max_logprobs."
        )
