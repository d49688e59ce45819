import re
from pathlib import Path
from typing import Any

import pytest

from quire.engine.chat import as_conversations, load_chat_template, render_chat
from quire.engine.tokenizer import Tokenizer
from quire.errors import ChatTemplateError, OptionError, PromptError

ROOT = Path(__file__).parents[2]
CHATML = ROOT / "examples" / "template_chatml.jinja"
FIXTURES = ROOT / "tests" / "fixtures" / "tokenizers"
WITH_TEMPLATE = Tokenizer(FIXTURES / "byte_level")
WITHOUT_TEMPLATE = Tokenizer(FIXTURES / "opt")
HELLO = [{"role": "user", "content": "Hello"}]
SHOW = "{{ messages | tojson }}{{ tools | tojson if tools else '' }}"


def test_chatml() -> None:
    turns = [{"role": "system", "content": "Be brief."}, *HELLO]
    head = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    assert render_chat(WITH_TEMPLATE, turns) == head + "<|im_start|>assistant\n"
    assert render_chat(WITH_TEMPLATE, turns, add_generation_prompt=False) == head


def test_the_last_message_is_continued() -> None:
    turns = [*HELLO, {"role": "assistant", "content": "The answer"}]
    prompt = render_chat(
        WITH_TEMPLATE, turns, continue_final_message=True, add_generation_prompt=False
    )
    assert prompt.endswith("<|im_start|>assistant\nThe answer")
    with pytest.raises(OptionError, match="contradict.*Pass add_generation_prompt=False"):
        render_chat(WITH_TEMPLATE, turns, continue_final_message=True)


def test_a_template_may_be_text_or_a_file(tmp_path: Path) -> None:
    text = "{{ messages[0].content }}!"
    path = tmp_path / "t.jinja"
    path.write_text(text)
    for template in (text, path, str(path)):
        assert load_chat_template(template) == text
        assert render_chat(WITHOUT_TEMPLATE, HELLO, chat_template=template) == "Hello!"
    assert load_chat_template(None) is None
    assert load_chat_template(CHATML) == CHATML.read_text()
    assert load_chat_template("line\n" * 2000) == "line\n" * 2000


@pytest.mark.parametrize("path", ["no/such.jinja", Path("no{{such"), "x" * 5000, "a\0b", ROOT])
def test_a_path_that_cannot_be_read_is_refused(path: str | Path) -> None:
    with pytest.raises(ChatTemplateError, match="is no readable file .*Pass the path of"):
        load_chat_template(path)


def test_without_a_template_the_remedy_is_told() -> None:
    with pytest.raises(
        ChatTemplateError, match=r"has no chat template.*chat_template=.*template_chatml.jinja"
    ):
        render_chat(WITHOUT_TEMPLATE, HELLO)
    assert "Hello" in render_chat(WITHOUT_TEMPLATE, HELLO, chat_template=CHATML)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "Expected an expression"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ messages.x.y }}", "has no attribute 'x'"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_fails_says_why(template: str, reason: str) -> None:
    with pytest.raises(ChatTemplateError, match=f"refuses this conversation: .*{reason}"):
        render_chat(WITH_TEMPLATE, HELLO, chat_template=template)


def test_tools_reach_the_template() -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": {}}}
    prompt = render_chat(WITH_TEMPLATE, HELLO, chat_template=SHOW, tools=[tool])
    assert '"name": "now"' in prompt
    with pytest.raises(
        ChatTemplateError, match="1 tools were given, but this chat template has no"
    ):
        render_chat(WITH_TEMPLATE, HELLO, tools=[tool])


def test_variables_reach_the_template() -> None:
    given = {"mood": "merry"}
    template = "{{ mood }} {{ bos_token }}"
    prompt = render_chat(WITH_TEMPLATE, HELLO, chat_template=template, chat_template_kwargs=given)
    assert prompt == "merry <|endoftext|>"
    with pytest.raises(OptionError, match=r"chat_template_kwargs may not hold \['tools'\]"):
        render_chat(WITH_TEMPLATE, HELLO, chat_template_kwargs={"tools": []})


def test_text_parts_become_one_text() -> None:
    parts = [{"type": "text", "text": "one"}, "two"]
    prompt = render_chat(WITH_TEMPLATE, [{"role": "user", "content": parts}])
    assert "<|im_start|>user\none\ntwo<|im_end|>" in prompt


def test_arguments_of_tool_calls_become_dicts() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    prompt = render_chat(WITH_TEMPLATE, [*HELLO, turn], chat_template=SHOW)
    assert '"arguments": {"a": 1}' in prompt
    assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}
    call["function"] = {"name": "add", "arguments": "{"}
    with pytest.raises(PromptError, match="Message 1 has a tool call whose arguments are no JSON"):
        render_chat(WITH_TEMPLATE, [*HELLO, turn], chat_template=SHOW)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"content": "a"}, "Message 0 has role=None: it needs one, such as 'system'"),
        ({"role": 1, "content": "a"}, "Message 0 has role=1"),
        ({"role": "user"}, "Message 0 (user) has no content: pass a string."),
        ({"role": "user", "content": 3}, "Message 0 has content of type int"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "which this model does not take"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "which this model does not take"),
        ({"role": "user", "content": [{"type": "text"}]}, 'must be {"type": "text"'),
        ({"role": "user", "content": [5]}, "a part of type 'int'"),
    ],
)
def test_malformed_messages_are_refused(message: dict[str, Any], error: str) -> None:
    with pytest.raises(PromptError, match=re.escape(error)):
        render_chat(WITH_TEMPLATE, [message])


def test_one_conversation_or_many() -> None:
    assert as_conversations(HELLO) == [HELLO]
    assert as_conversations([HELLO, HELLO]) == [HELLO, HELLO]
    assert as_conversations((HELLO,)) == [HELLO]


@pytest.mark.parametrize("messages", ["Hello", HELLO[0], 5, ["Hello"], [HELLO, "a"], [HELLO[0], 1]])
def test_what_is_no_conversation_is_refused(messages: Any) -> None:
    with pytest.raises(PromptError, match="messages must be a list of dicts .*use generate"):
        as_conversations(messages)


@pytest.mark.parametrize("messages", [[], [[]], [HELLO, []]])
def test_an_empty_conversation_is_refused(messages: Any) -> None:
    with pytest.raises(PromptError, match="The conversation is empty"):
        as_conversations(messages)
