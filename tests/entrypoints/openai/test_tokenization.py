from tests.entrypoints.openai.demo_api import (
    ASK_PARIS,
    ASK_WEATHER,
    GET_WEATHER,
    PARIS,
    answer,
    chat,
    demo_engine,
    refusal,
)


def test_a_text_there_and_back() -> None:
    told = answer("/tokenize", {"prompt": PARIS})
    assert told["tokens"] == demo_engine().get_tokenizer().encode(PARIS)
    assert (told["count"], told["max_model_len"]) == (len(told["tokens"]), 512)
    assert told["token_strs"] is None
    assert answer("/detokenize", {"tokens": told["tokens"]}) == {"prompt": PARIS}


def test_the_vocabularys_spelling() -> None:
    told = answer("/tokenize", {"prompt": PARIS, "return_token_strs": True, "model": "demo"})
    assert len(told["token_strs"]) == told["count"]
    assert "".join(told["token_strs"]).replace("Ġ", " ") == PARIS


def test_a_conversation_has_the_tokens_of_a_chat() -> None:
    told = answer("/tokenize", {"messages": ASK_PARIS})
    assert told["count"] == chat(messages=ASK_PARIS, max_tokens=1)["usage"]["prompt_tokens"]
    tools = [GET_WEATHER]
    told = answer("/tokenize", {"messages": ASK_WEATHER, "tools": tools})
    asked = chat(messages=ASK_WEATHER, tools=tools, tool_choice="required", max_tokens=1)
    assert told["count"] == asked["usage"]["prompt_tokens"]


def test_an_open_last_message() -> None:
    messages = [*ASK_PARIS, {"role": "assistant", "content": "It is"}]
    body = {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}
    tokens = answer("/tokenize", body)["tokens"]
    assert answer("/detokenize", {"tokens": tokens})["prompt"].endswith("assistant\nIt is")


def test_mistakes() -> None:
    assert "one of prompt and messages" in refusal("/tokenize", {})["message"]
    both = {"prompt": "x", "messages": ASK_PARIS}
    assert "not both" in refusal("/tokenize", both)["message"]
    assert refusal("/tokenize", {"prompt": "x", "text": "y"})["param"] == "text"
    assert refusal("/tokenize", {"prompt": 5})["param"] == "prompt"
    special = {"messages": ASK_PARIS, "add_special_tokens": True}
    assert refusal("/tokenize", special)["param"] == "add_special_tokens"
    assert "0 to 1791" in refusal("/detokenize", {"tokens": [1792]})["message"]
    assert refusal("/detokenize", {"tokens": [-1]})["param"] == "tokens[0]"
    assert refusal("/detokenize", {"tokens": [2**70]})["param"] == "tokens[0]"
    template = {"messages": ASK_PARIS, "chat_template": "{{ 5 }}"}
    assert "--trust-request-chat-template" in refusal("/tokenize", template)["message"]
