"""What requests ask of the programs."""

import pytest

from quire import SamplingParams
from quire.engine.buckets import Variant
from quire.engine.requests import _variant


@pytest.mark.parametrize(
    ("params", "variant"),
    [
        (SamplingParams(temperature=0), Variant.GREEDY),
        (SamplingParams(temperature=0.5, top_k=3), Variant.SAMPLED),
        (SamplingParams(temperature=0, presence_penalty=0.5), Variant.PENALIZED),
        (SamplingParams(repetition_penalty=1.1), Variant.PENALIZED),
        (SamplingParams(logit_bias={3: 1.0}), Variant.PENALIZED),
        (SamplingParams(min_tokens=1), Variant.PENALIZED),
        (SamplingParams(temperature=0, logprobs=0), Variant.FULL),
        (SamplingParams(prompt_logprobs=0, frequency_penalty=1), Variant.FULL),
    ],
    ids=str,
)
def test_a_request_asks_for_the_least_variant(params: SamplingParams, variant: Variant) -> None:
    assert _variant(params) == variant
