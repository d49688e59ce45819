"""Flags made from the fields of options."""

import argparse
import dataclasses

import pytest

from quire import EngineOptions, SamplingParams
from quire.entrypoints import arguments


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    arguments.add_sampling_params(parser, max_tokens=128)
    arguments.add_engine_options(parser)
    return parser.parse_args(argv)


def flags() -> set[str]:
    parser = argparse.ArgumentParser()
    arguments.add_sampling_params(parser)
    arguments.add_engine_options(parser)
    return {option for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize(
    ("cls", "left_out"),
    [
        (EngineOptions, arguments.ENGINE_LEFT_OUT),
        (SamplingParams, arguments.SAMPLING_LEFT_OUT),
    ],
)
def test_every_field_is_a_flag(cls: type, left_out: frozenset[str]) -> None:
    names = {field.name for field in dataclasses.fields(cls)}
    assert left_out < names
    assert {"--" + name.replace("_", "-") for name in names - left_out} < flags()


def test_what_is_not_given_is_left_to_the_engine() -> None:
    args = parse()
    assert arguments.engine_options(args) == {}
    assert arguments.sampling_params(args) == {"max_tokens": 128}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--max-model-len", "64"], {"max_model_len": 64}),
        (["--max-model-len", "none"], {"max_model_len": None}),
        (["--gpu-memory-utilization=0.5"], {"gpu_memory_utilization": 0.5}),
        (["--no-enable-prefix-caching"], {"enable_prefix_caching": False}),
        (["--load-format", "dummy"], {"load_format": "dummy"}),
        (["--hf-overrides", '{"rope_theta": 5}'], {"hf_overrides": {"rope_theta": 5}}),
        (["--compilation-cache-dir", "None"], {"compilation_cache_dir": None}),
        (["--dtype", "float32"], {"dtype": "float32"}),
    ],
)
def test_engine_options_are_read_by_their_types(
    argv: list[str], expected: dict[str, object]
) -> None:
    assert arguments.engine_options(parse(*argv)) == expected


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--stop", "a", "--stop", "b c"], {"stop": ["a", "b c"]}),
        (["--stop-token-ids", "1", "--stop-token-ids", "2"], {"stop_token_ids": [1, 2]}),
        (["--logit-bias", '{"7": -2.5}'], {"logit_bias": {"7": -2.5}}),
        (["--ignore-eos"], {"ignore_eos": True}),
        (["--top-p", "0.5", "--seed", "3"], {"top_p": 0.5, "seed": 3}),
        (["--max-tokens", "none"], {"max_tokens": None}),
    ],
)
def test_sampling_params_are_read_by_their_types(
    argv: list[str], expected: dict[str, object]
) -> None:
    given = arguments.sampling_params(parse(*argv))
    assert given == {"max_tokens": 128} | expected
    SamplingParams(**given)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max-model-len", "many"], "argument --max-model-len: invalid int value: 'many'"),
        (["--hf-overrides", "{"], "'{' is not JSON"),
        (["--hf-overrides", "[1]"], "'[1]' is not a JSON object"),
        (["--load-format", "zip"], "invalid choice: 'zip'"),
    ],
)
def test_unreadable_values_are_refused(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(*argv)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_help_is_what_the_fields_say() -> None:
    parser = argparse.ArgumentParser()
    arguments.add_engine_options(parser, frozenset({"max_logprobs", "max_model_len"}))
    text = " ".join(parser.format_help().split())
    assert "-1 (all) is always allowed. (default: 20)" in text
    assert "--max-model-len" in text
    assert "--dtype" not in text
