from quire.engine.outputs import (
    BeamSearchOutput,
    BeamSearchSequence,
    CompletionOutput,
    Logprob,
    RequestMetrics,
    RequestOutput,
)


def completion(text: str = "Paris.") -> CompletionOutput:
    return CompletionOutput(index=0, text=text, token_ids=[5, 6], finish_reason="stop")


def test_reprs_are_short_and_tell_what_matters() -> None:
    output = RequestOutput("7", "The capital is", [1, 2], None, [completion()], finished=True)
    assert repr(output) == (
        "RequestOutput(request_id='7', prompt='The capital is', outputs=[CompletionOutput("
        "index=0, text='Paris.', 2 tokens, finish_reason='stop')], finished=True)"
    )
    assert len(repr(completion("x" * 10_000))) < 160
    assert "prompt=3 tokens" in repr(RequestOutput("7", None, [1, 2, 3], None, [], finished=False))


def test_metrics_are_none_until_they_are_known() -> None:
    metrics = RequestMetrics(arrival_time=10.0)
    assert metrics.time_to_first_token is None
    assert metrics.latency is None
    metrics.first_token_time, metrics.finish_time = 10.5, 12.0
    assert (metrics.time_to_first_token, metrics.latency) == (0.5, 2.0)


def test_beam_search_output_is_a_request_output_with_sequences() -> None:
    beams = [
        BeamSearchSequence(index, "a", [1], cumulative_logprob=-index, score=-index)
        for index in range(2)
    ]
    output = BeamSearchOutput("1", "p", [1], None, beams, finished=True)
    assert isinstance(output, RequestOutput)
    assert output.sequences == output.outputs
    assert [beam.score for beam in output.sequences] == [0, -1]
    assert (output.outputs[1].text, output.outputs[1].cumulative_logprob) == ("a", -1)


def test_logprob_has_a_rank_and_a_text() -> None:
    assert Logprob(-0.5, rank=1, decoded_token=" a").decoded_token == " a"
    assert Logprob(-0.5).rank is None
