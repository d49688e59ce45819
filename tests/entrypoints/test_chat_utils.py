"""Names that programs written for vLLM import."""

import quire
from quire.entrypoints.chat_utils import load_chat_template


def test_it_is_the_public_function() -> None:
    assert load_chat_template is quire.load_chat_template
    assert load_chat_template("{{ messages }}") == "{{ messages }}"
