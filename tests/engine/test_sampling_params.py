import copy
import math
import pickle
import re
from typing import Any

import numpy as np
import pytest

from quire.engine.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from quire.errors import OptionError


def sampling(**options: Any) -> SamplingParams:
    return SamplingParams(**options)


def beams(**options: Any) -> BeamSearchParams:
    return BeamSearchParams(**options)


def test_defaults() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k) == (1, 1.0, 1.0, 0)
    assert (params.max_tokens, params.min_tokens, params.seed) == (16, 0, None)
    assert (params.stop, params.stop_token_ids, params.bad_words) == ([], [], [])
    assert params.logprobs is None
    assert params.output_kind is RequestOutputKind.CUMULATIVE
    assert (params.greedy, params.needs_counts, params.needs_bias) == (False, False, False)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n", 0, "n=0 (int) is not allowed: it must be an int in [1, 16384]. Pass n=1"),
        ("n", True, "n=True (bool) is not allowed: it must be an int in [1, 16384]."),
        ("n", 1.0, "n=1.0 (float) is not allowed"),
        ("presence_penalty", 2.5, "must be a number in [-2, 2]. Pass 0 for no penalty."),
        ("frequency_penalty", -3, "frequency_penalty=-3 (int) is not allowed"),
        ("repetition_penalty", 0.0, "must be a number above 0. Pass 1 for no penalty."),
        ("repetition_penalty", math.inf, "repetition_penalty=inf (float) is not allowed"),
        ("temperature", -0.1, "must be a number in [0, 2]. Pass 0 for greedy decoding"),
        ("temperature", math.nan, "temperature=nan (float) is not allowed"),
        ("temperature", "0.8", "temperature='0.8' (str) is not allowed"),
        ("temperature", None, "temperature=None (NoneType) is not allowed"),
        ("top_p", 0, "top_p=0 (int) is not allowed: it must be a number in (0, 1]. Pass 1"),
        ("top_p", 1.1, "top_p=1.1 (float) is not allowed"),
        ("top_k", -2, "must be an int, -1 or more. Pass 0 to keep every token."),
        ("min_p", 1.5, "must be a number in [0, 1]"),
        ("seed", -2, "must be an int in [-1, 9223372036854775807]. Pass None"),
        ("seed", 2**63, "seed=9223372036854775808 (int) is not allowed"),
        ("max_tokens", 0, "must be an int, 1 or more. Pass None to go on"),
        ("max_tokens", -5, "max_tokens=-5 (int) is not allowed"),
        ("min_tokens", -1, "must be an int, 0 or more. Pass 0 for no minimum."),
        ("logprobs", -2, "must be an int, -1 or more. Pass 0 for the token itself"),
        ("logprobs", True, "logprobs=True (bool) is not allowed"),
        ("prompt_logprobs", 1.5, "prompt_logprobs=1.5 (float) is not allowed"),
        ("stop", "", "must be strings of at least one character"),
        ("stop", [1], "must be strings of at least one character"),
        ("stop", 1, "must be a string or a list of strings"),
        ("bad_words", ["a", ""], "bad_words=['a', ''] (list) is not allowed"),
        ("stop_token_ids", 5, "must be a list of token ids"),
        ("stop_token_ids", "12", "must be a list of token ids"),
        ("stop_token_ids", [-1], "must be an int, 0 or more. Token ids count from 0"),
        ("stop_token_ids", [True], "stop_token_ids=True (bool) is not allowed"),
        ("allowed_token_ids", [], "must be at least one token id. Pass None to allow"),
        ("logit_bias", [1], "must be a dict of token ids to numbers. Pass {token_id: bias}."),
        ("logit_bias", {"a": 1}, "logit_bias key='a' (str) is not allowed"),
        ("logit_bias", {1: math.nan}, "logit_bias value=nan (float) is not allowed"),
        ("ignore_eos", 1, "ignore_eos=1 (int) is not allowed: it must be True or False."),
        ("detokenize", None, "detokenize=None (NoneType) is not allowed"),
        ("output_kind", 1, "must be one of RequestOutputKind.CUMULATIVE"),
    ],
)
def test_bad_values_say_what_is_allowed(name: str, value: object, message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)) as error:
        sampling(**{name: value})
    assert str(error.value).startswith(name)


def test_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(OptionError, match="no parameter 'temprature'. Did you mean 'temperature'"):
        sampling(temprature=1)
    with pytest.raises(OptionError, match="no parameter 'zzz'. Known are allowed_token_ids, bad_"):
        sampling(zzz=1)


def test_all_bad_keywords_are_in_one_error() -> None:
    with pytest.raises(OptionError, match="'topp'.*'top_p'.*best_of=4 is not supported. Pass n"):
        sampling(topp=1, best_of=4)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("guided_decoding", {"regex": "a"}, "structured_outputs=StructuredOutputsParams"),
        ("logits_processors", [abs], "logit_bias"),
        ("use_beam_search", True, "BeamSearchParams"),
        ("best_of", True, "n for several outputs"),
        ("thinking_token_budget", 5, "max_tokens"),
        ("repetition_detection", object(), "repetition_penalty"),
        ("extra_args", {"a": 1}, "Leave it out"),
    ],
)
def test_what_is_not_implemented_is_refused(name: str, value: object, remedy: str) -> None:
    with pytest.raises(OptionError, match=f"{name}=.* is not supported. .*{remedy}"):
        sampling(**{name: value})


def test_what_is_not_implemented_is_accepted_where_it_asks_for_nothing() -> None:
    nothing = {"structured_outputs": None, "best_of": 1, "logits_processors": [], "extra_args": {}}
    assert sampling(**nothing) == SamplingParams()


def test_greedy_below_its_threshold_resets_the_filters() -> None:
    params = SamplingParams(temperature=9e-6, top_p=0.5, top_k=3, min_p=0.2)
    assert params.greedy
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0, 1, 0, 0)
    assert SamplingParams(temperature=1e-5).temperature == 0.01
    assert SamplingParams(temperature=0.01).temperature == 0.01
    assert not SamplingParams(temperature=1e-5).greedy


def test_several_greedy_outputs_are_refused_with_the_remedy() -> None:
    with pytest.raises(OptionError, match=r"n=2 with temperature=0.0.*temperature > 0 or n=1"):
        SamplingParams(n=2, temperature=0)
    assert SamplingParams(n=2, temperature=0.5).n == 2


def test_contradictions_are_refused() -> None:
    with pytest.raises(OptionError, match=r"stop=\['a'\] needs the text, but detokenize=False"):
        SamplingParams(stop="a", detokenize=False)
    with pytest.raises(OptionError, match="min_tokens=17 is above max_tokens=16"):
        SamplingParams(min_tokens=17)
    assert SamplingParams(min_tokens=17, max_tokens=None).min_tokens == 17


def test_other_spellings_are_normalized() -> None:
    params = sampling(top_k=-1, seed=-1, stop="a", stop_token_ids=(1, 2))
    assert (params.top_k, params.seed) == (0, None)
    assert (params.stop, params.stop_token_ids) == (["a"], [1, 2])
    bias = SamplingParams(logit_bias={"7": 1e9, "8": -math.inf, "9": 0.5}).logit_bias
    assert bias == {7: 100.0, 8: -100.0, 9: 0.5}


def test_numpy_scalars_are_numbers() -> None:
    params = sampling(temperature=np.float32(0.5), max_tokens=np.int64(3))
    assert (type(params.temperature), type(params.max_tokens)) == (float, int)
    assert sampling(stop_token_ids=np.array([3, 4])).stop_token_ids == [3, 4]
    with pytest.raises(OptionError, match="n=.*is not allowed"):
        sampling(n=np.bool_(True))


def test_needs() -> None:
    for name in ("presence_penalty", "frequency_penalty"):
        assert sampling(**{name: 0.1}).needs_counts
    assert SamplingParams(repetition_penalty=1.1).needs_counts
    assert SamplingParams(logit_bias={1: 1}).needs_bias
    assert SamplingParams(allowed_token_ids=[1]).needs_bias
    assert SamplingParams(bad_words=["a"]).needs_bias
    assert SamplingParams(min_tokens=1).needs_bias


def test_clone_shares_nothing_and_checks_again() -> None:
    params = SamplingParams(stop=["a"], logit_bias={1: 1.0}, stop_token_ids=[1])
    clone = params.clone()
    assert clone == params
    assert clone.stop is not params.stop
    assert clone.logit_bias is not params.logit_bias
    params.top_p = 0.0
    with pytest.raises(OptionError, match="top_p=0.0"):
        params.clone()


def test_copies_and_pickles_are_equal() -> None:
    params = SamplingParams(temperature=0.5, stop=["a"])
    assert copy.deepcopy(params) == params == pickle.loads(pickle.dumps(params))


def test_generation_config_gives_defaults_as_they_are() -> None:
    config = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "top_k": 40, "min_p": None}
    params = SamplingParams.from_generation_config(
        {**config, "max_new_tokens": 99, "repetition_penalty": 1.1, "eos_token_id": 2}
    )
    expected = SamplingParams(
        temperature=0.6, top_p=0.9, top_k=40, max_tokens=99, repetition_penalty=1.1
    )
    assert params == expected
    assert SamplingParams.from_generation_config({}) == SamplingParams()


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids", "logit_bias"])
def test_token_ids_outside_the_vocabulary_are_refused(name: str) -> None:
    ids = {99: 1.0, 100: 1.0} if name == "logit_bias" else [99, 100]
    params = sampling(**{name: ids})
    params.validate_for(vocab_size=101, max_logprobs=20)
    with pytest.raises(OptionError, match=rf"{name} has the token ids \[100\]: .* 0 to 99"):
        params.validate_for(vocab_size=100, max_logprobs=20)


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_too_many_logprobs_are_refused(name: str) -> None:
    params = sampling(**{name: 21})
    with pytest.raises(OptionError, match=f"{name}=21 is too many: at most 20 .*max_logprobs"):
        params.validate_for(vocab_size=100, max_logprobs=20)
    params.validate_for(vocab_size=100, max_logprobs=-1)
    with pytest.raises(OptionError, match="at most 8 are allowed"):
        params.validate_for(vocab_size=8, max_logprobs=-1)
    for count in (-1, 0, 20):
        sampling(**{name: count}).validate_for(vocab_size=100, max_logprobs=20)


def test_repr_shows_what_was_asked_for() -> None:
    assert repr(SamplingParams(temperature=0.8, top_p=0.95)) == (
        "SamplingParams(temperature=0.8, top_p=0.95)"
    )
    assert repr(BeamSearchParams(beam_width=5, max_tokens=50)) == (
        "BeamSearchParams(beam_width=5, max_tokens=50)"
    )


def test_beam_search_defaults() -> None:
    params = BeamSearchParams(beam_width=5, max_tokens=50)
    assert (params.temperature, params.length_penalty, params.early_stopping) == (0.0, 1.0, False)
    assert not params.ignore_eos
    assert params.skip_special_tokens
    assert BeamSearchParams(beam_width=1, max_tokens=1, early_stopping="never")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("beam_width", 0, "must be an int, 1 or more. Pass 1 or more."),
        ("max_tokens", None, "max_tokens=None (NoneType) is not allowed"),
        ("temperature", 3, "must be a number in [0, 2]"),
        ("length_penalty", math.nan, "must be a finite number. Pass 1 to score by the mean"),
        ("early_stopping", "always", "must be True, False or 'never'"),
        ("early_stopping", 1, "early_stopping=1 (int) is not allowed"),
        ("skip_special_tokens", 1, "must be True or False"),
        ("beam_size", 3, "no parameter 'beam_size'. Did you mean"),
        ("structured_outputs", {}, "structured_outputs={} is not supported"),
    ],
)
def test_beam_search_mistakes(name: str, value: object, message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        beams(**{"beam_width": 2, "max_tokens": 3, name: value})


def test_beam_search_needs_width_and_length() -> None:
    with pytest.raises(OptionError, match="'beam_width' is missing.*'max_tokens' is missing"):
        beams()
