"""Engine options: every mistake is named, with the remedy."""

import pytest

from quire.engine.options import EngineOptions, make_options
from quire.errors import OptionError


def test_defaults_and_aliases() -> None:
    assert make_options() == EngineOptions()
    assert make_options("gpt", block_size=32) == EngineOptions(model="gpt", page_size=32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seq": 3}, "unknown engine option 'max_num_seq'. Did you mean 'max_num_seqs'"),
        ({"task": "embed"}, "task='embed' is not supported yet. Allowed: None, 'auto', 'generate'"),
        ({"quantization": "awq"}, "quantization='awq' is not supported"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size=2 is not supported yet"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size=0 must be at least 1"),
        ({"data_parallel_size": 0}, "data_parallel_size=0 must be at least 1"),
        ({"load_format": "gguf"}, "load_format='gguf' is not known. Allowed: 'auto'"),
        ({"seed": True}, "seed=True is a bool; it must be int"),
        ({"max_model_len": 0}, "max_model_len=0 must be at least 1"),
        ({"max_model_len": "8k"}, "max_model_len='8k' is a str"),
        ({"gpu_memory_utilization": 1.5}, "above 0 and at most 1"),
        ({"gpu_memory_utilization": float("nan")}, "above 0 and at most 1"),
        ({"page_size": 12}, "one of 8, 16, 32, 64, 128"),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message.replace("(", r"\(")):
        make_options(**options)


def test_options_of_others_that_change_nothing_are_taken() -> None:
    harmless = {
        "task": "generate",
        "pipeline_parallel_size": 1,
        "trust_remote_code": True,
        "quantization": None,
        "enforce_eager": True,
    }
    assert make_options("gpt", **harmless) == EngineOptions(model="gpt", enforce_eager=True)
