"""From prompts and parameters to requests the scheduler takes; every user mistake ends here."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError, PromptError
from ..models import mrope
from .buckets import Variant
from .prompts import Prompt, check_prompt
from .request import Request, Sequence as Line
from .sampling_params import RequestOutputKind, SamplingParams
from .structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    from .assembly import Assembly
    from .tokenizer import Tokenizer


def maker(
    assembly: "Assembly",
    count: int,
    params: Any,
    priority: int | Sequence[int] | None,
    kind: RequestOutputKind,
    serial: Iterator[int],
) -> Callable[[int, Prompt], Request]:
    """What makes a checked request of each of `count` prompts, and raises PromptError.

    Raises OptionError.
    """
    each = _one_each(params, count, "sampling_params", assembly.default_params)
    priorities = _one_each(priority, count, "priority", 0)
    limit = assembly.spec.config
    for one in each:
        if not isinstance(one, SamplingParams):
            raise OptionError(f"sampling_params={one!r} must be SamplingParams or a list of them.")
        one.validate_for(limit.vocab_size, assembly.options.max_logprobs)

    def make(index: int, prompt: Prompt) -> Request:
        try:
            check_prompt(prompt, vocab_size=limit.vocab_size, max_model_len=limit.max_model_len)
        except PromptError as error:
            if count == 1:
                raise
            raise PromptError(f"prompts[{index}]: {error}") from error
        return _make_one(assembly, prompt, each[index], priorities[index], kind, next(serial))

    return make


def _one_each(given: Any, count: int, name: str, default: Any) -> list[Any]:
    if given is None:
        return [default] * count
    if not isinstance(given, Sequence) or isinstance(given, str):
        return [given] * count
    if len(given) != count:
        raise OptionError(
            f"{name} has {len(given)} entries for {count} prompts: give one, or one each."
        )
    return list(given)


def _make_one(
    assembly: "Assembly",
    prompt: Prompt,
    params: SamplingParams,
    priority: int,
    kind: RequestOutputKind,
    serial: int,
) -> Request:
    bad_words = _bad_words(params, assembly.tokenizer)
    waits = any(len(word) > 1 for word in bad_words)
    constraint = None
    if isinstance(params.structured_outputs, StructuredOutputsParams):
        constraint = assembly.grammars.constraint(params.structured_outputs)
    stop_ids = frozenset(params.stop_token_ids or ())
    if not params.ignore_eos:
        stop_ids |= assembly.eos_token_ids
    rotary, delta = _rotary(assembly, prompt)
    request = Request(
        id=str(serial),
        prompt=prompt.text,
        prompt_token_ids=prompt.token_ids,
        params=params,
        arrival=serial,
        priority=priority,
        salt=prompt.salt,
        adapter=prompt.adapter,
        media=prompt.media,
        rotary=rotary,
        rotary_delta=delta,
        eos_ids=assembly.eos_token_ids,
        stop_ids=stop_ids,
        bad_words=bad_words,
        variant=_variant(params),
        dynamic_bias=params.min_tokens > 0 or waits,
        output_kind=kind,
        arrival_time=time.monotonic(),
    )
    longest = assembly.spec.config.max_model_len
    max_len = longest
    if params.max_tokens is not None:
        max_len = min(longest, len(prompt.token_ids) + params.max_tokens)
    keys = _keys(params, assembly.options.seed, serial)
    request.sequences.extend(
        Line(
            request=request,
            index=index,
            tokens=list(prompt.token_ids),
            prompt_len=len(prompt.token_ids),
            max_len=max_len,
            key=(int(keys[index][0]), int(keys[index][1])),
            waits_for_token=waits or constraint is not None,
            constraint=constraint and constraint.copy(),
        )
        for index in range(params.n)
    )
    return request


def _rotary(assembly: "Assembly", prompt: Prompt) -> tuple[np.ndarray | None, int]:
    """Where the tokens of a prompt stand, for models that rotate by three positions."""
    places = [(one.start, one.grid) for one in prompt.media if one.grid is not None]
    return mrope.positions(len(prompt.token_ids), places) if places else (None, 0)


def _variant(params: SamplingParams) -> Variant:
    if params.logprobs is not None or params.prompt_logprobs is not None:
        return Variant.FULL
    if params.needs_counts or params.needs_bias or params.structured_outputs is not None:
        return Variant.PENALIZED
    return Variant.GREEDY if params.greedy else Variant.SAMPLED


def _keys(params: SamplingParams, engine_seed: int, serial: int) -> np.ndarray:
    """uint32 [n, 2]: with a seed, the same whatever else the engine serves."""
    entropy = [params.seed % 2**64] if params.seed is not None else [engine_seed % 2**64, serial]
    return np.random.SeedSequence(entropy).generate_state(2 * params.n).reshape(params.n, 2)


def _bad_words(params: SamplingParams, tokenizer: "Tokenizer | None") -> list[list[int]]:
    """Token ids of each bad word, at the start of a text and after a space."""
    if not params.bad_words:
        return []
    if tokenizer is None:
        raise OptionError("bad_words need a tokenizer, but skip_tokenizer_init=True was given.")
    spellings = (
        tokenizer.encode(prefix + word.lstrip(), add_special_tokens=False)
        for word in params.bad_words
        for prefix in ("", " ")
    )
    return [list(ids) for ids in dict.fromkeys(tuple(ids) for ids in spellings if ids)]
