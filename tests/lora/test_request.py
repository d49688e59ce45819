"""What a request may say, and when two mean the same adapter."""

from pathlib import Path
from typing import Any

import pytest

from quire.errors import OptionError
from quire.lora.request import LoRARequest


def test_positional_and_read_by_short_names() -> None:
    request = LoRARequest("sql", 1, "/adapters/sql", "meta-llama/Llama-2-7b-hf", True)
    assert (request.name, request.id, request.path) == ("sql", 1, "/adapters/sql")
    assert request.base_model_name == "meta-llama/Llama-2-7b-hf"
    assert request.load_inplace


def test_a_path_becomes_a_string() -> None:
    assert LoRARequest("a", 1, Path("/x/a")).lora_path == "/x/a"  # pyright: ignore


def test_equal_by_name_id_and_path() -> None:
    request = LoRARequest("a", 1, "/x")
    assert request == LoRARequest("a", 1, "/x", base_model_name="b", load_inplace=True)
    assert len({request, LoRARequest("a", 1, "/x", load_inplace=True)}) == 1
    others = [LoRARequest("b", 1, "/x"), LoRARequest("a", 2, "/x"), LoRARequest("a", 1, "/y")]
    assert request not in others


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("", 1, "/x"), "lora_name='' is not allowed"),
        ((3, 1, "/x"), "lora_name=3 is not allowed"),
        (("a", 1, " "), "lora_path=' ' is not allowed"),
        (("a", 0, "/x"), "lora_int_id=0 is not allowed: it must be an int, 1 or more"),
        (("a", True, "/x"), "lora_int_id=True is not allowed"),
        (("a", "1", "/x"), "lora_int_id='1' is not allowed"),
        (("a", 1, "/x", ""), "base_model_name='' is not allowed"),
        (("a", 1, "/x", None, 1), "load_inplace=1 must be True or False"),
    ],
)
def test_refused(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        LoRARequest(*arguments)
