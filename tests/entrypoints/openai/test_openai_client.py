"""The real `openai` package against a live server with the demo model."""

import asyncio
import json
import time
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from .demo_api import GET_WEATHER

pytestmark = pytest.mark.slow

FRANCE = "The capital of France is"
WEATHER: Any = [GET_WEATHER]
QUESTION: Any = [{"role": "user", "content": "What's the weather like in San Francisco?"}]
HELLO: Any = [{"role": "user", "content": "Hello"}]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
CHOICES = [pytest.param(choice, id=str(choice)[:8]) for choice in ("auto", "required", NAMED)]


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def chat(client: openai.OpenAI, model: str, messages: Any, **given: Any) -> Any:
    given = {"temperature": 0, "max_tokens": 60, **given}
    return client.chat.completions.create(model=model, messages=messages, **given)


def test_models(client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    assert (card.id, card.owned_by, card.object) == ("demo", "quire", "model")
    assert client.models.retrieve("demo") == card


def test_completion(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=FRANCE, max_tokens=7, temperature=0)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert "Paris" in answer.choices[0].text
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_completion_is_the_same(client: openai.OpenAI, model: str) -> None:
    given: Any = {"model": model, "prompt": FRANCE, "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**given)
    usage: Any = {"include_usage": True}
    chunks = list(client.completions.create(**given, stream=True, stream_options=usage))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == (
        whole.choices[0].finish_reason
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert all(chunk.id == chunks[0].id for chunk in chunks)


def test_prompts_of_every_kind(client: openai.OpenAI, model: str, server: str) -> None:
    body = {"prompt": FRANCE}
    ids = httpx.post(f"{server}/tokenize", json=body).json()["tokens"]
    texts = []
    for prompt in (FRANCE, ids, [FRANCE, FRANCE], [ids, ids]):
        answer = client.completions.create(model=model, prompt=prompt, max_tokens=5, temperature=0)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        texts += [choice.text for choice in answer.choices]
    assert len(texts) == 6
    assert len(set(texts)) == 1


def test_echo_and_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(
        model=model, prompt=FRANCE, max_tokens=3, temperature=0, echo=True, logprobs=2
    )
    (choice,) = answer.choices
    assert choice.text.startswith(FRANCE)
    logprobs = choice.logprobs
    assert logprobs is not None
    assert answer.usage is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.text_offset is not None
    assert len(logprobs.tokens) == answer.usage.total_tokens
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert all(len(top) >= 2 for top in logprobs.top_logprobs[1:])
    assert logprobs.text_offset == sorted(logprobs.text_offset)


def test_stop(client: openai.OpenAI, model: str) -> None:
    given: Any = {"model": model, "prompt": FRANCE, "max_tokens": 20, "temperature": 0}
    whole = client.completions.create(**given).choices[0].text
    word = whole.split()[0][1:]
    (choice,) = client.completions.create(**given, stop=[word]).choices
    assert choice.finish_reason == "stop"
    assert choice.text == whole.partition(word)[0]


def test_several_choices(client: openai.OpenAI, model: str) -> None:
    answer = chat(client, model, HELLO, n=2, temperature=1, seed=1, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1]
    texts = {0: "", 1: ""}
    reasons = {}
    for chunk in chat(client, model, HELLO, n=2, temperature=1, seed=1, max_tokens=8, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.message.content for choice in answer.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in answer.choices}


def test_chat(client: openai.OpenAI, model: str) -> None:
    answer = chat(client, model, HELLO)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"


def test_a_streamed_chat_is_the_same(client: openai.OpenAI, model: str) -> None:
    whole = chat(client, model, HELLO).choices[0]
    chunks: list[ChatCompletionChunk] = list(chat(client, model, HELLO, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)


def test_chat_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = chat(client, model, HELLO, max_tokens=4, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert bytes(token.bytes).decode(errors="replace") == token.token
    streamed = chat(client, model, HELLO, max_tokens=4, logprobs=True, top_logprobs=3, stream=True)
    pieces = [c.choices[0].logprobs.content for c in streamed if c.choices[0].logprobs]
    assert [token.token for piece in pieces for token in piece] == [t.token for t in content]


def test_async_clients_share_the_server(server: str, model: str) -> None:
    async def one(client: openai.AsyncOpenAI, stream: bool) -> str:
        given: Any = {"model": model, "messages": HELLO, "temperature": 0, "max_tokens": 20}
        if not stream:
            answer = await client.chat.completions.create(**given)
            return answer.choices[0].message.content or ""
        chunks = await client.chat.completions.create(**given, stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in chunks])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="x", max_retries=0) as one_:
            return await asyncio.gather(*(one(one_, stream=i % 2 == 0) for i in range(16)))

    texts = asyncio.run(all_of_them())
    assert len(set(texts)) == 1
    assert texts[0]


@pytest.mark.parametrize("choice", CHOICES)
def test_tools(client: openai.OpenAI, model: str, choice: Any) -> None:
    answer = chat(client, model, QUESTION, tools=WEATHER, tool_choice=choice).choices[0]
    (call,) = answer.message.tool_calls
    assert call.type == "function"
    assert call.id.startswith("chatcmpl-tool-")
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert arguments.keys() == {"location", "unit"}
    assert "San Francisco" in arguments["location"]
    assert arguments["unit"] in ("celsius", "fahrenheit")
    assert answer.finish_reason == ("stop" if isinstance(choice, dict) else "tool_calls")


@pytest.mark.parametrize("choice", CHOICES)
def test_streamed_tools_are_the_same(client: openai.OpenAI, model: str, choice: Any) -> None:
    (whole,) = (
        chat(client, model, QUESTION, tools=WEATHER, tool_choice=choice)
        .choices[0]
        .message.tool_calls
    )
    arguments = ""
    starts = []
    for chunk in chat(client, model, QUESTION, tools=WEATHER, tool_choice=choice, stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.index == 0
            if call.id is not None:
                starts.append((call.type, call.function.name))
            arguments += call.function.arguments or ""
    assert starts == [("function", "get_weather")]
    assert json.loads(arguments) == json.loads(whole.function.arguments)


def test_no_tool_is_called_where_none_may(client: openai.OpenAI, model: str) -> None:
    answer = chat(client, model, QUESTION, tools=WEATHER, tool_choice="none", max_tokens=10)
    assert answer.choices[0].message.tool_calls is None


def test_an_answer_to_a_tools_result(client: openai.OpenAI, model: str) -> None:
    first = chat(client, model, QUESTION, tools=WEATHER).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "Sunny, 20 C"}
    turns = [*QUESTION, first.model_dump(exclude_none=True), result]
    assert chat(client, model, turns, tools=WEATHER, max_tokens=20).choices[0].finish_reason


def test_json_schema(client: openai.OpenAI, model: str) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Ann", "Bob"]}, "old": {"type": "boolean"}},
        "required": ["name", "old"],
        "additionalProperties": False,
    }
    given: Any = {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": schema, "strict": True},
        }
    }
    whole = chat(client, model, HELLO, **given).choices[0].message.content
    person = json.loads(whole)
    assert person["name"] in ("Ann", "Bob")
    assert isinstance(person["old"], bool)
    streamed = chat(client, model, HELLO, stream=True, **given)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole


def test_structured_outputs(client: openai.OpenAI, model: str) -> None:
    def answer(**structure: Any) -> str:
        body = {"structured_outputs": structure}
        return chat(client, model, HELLO, extra_body=body).choices[0].message.content

    assert answer(choice=["red", "blue"]) in ("red", "blue")
    assert len(answer(regex=r"\d{4}")) == 4
    assert answer(grammar='start: "a" "b"') == "ab"


def test_request_ids(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(
        model=model, prompt="Hi", max_tokens=1, extra_headers={"X-Request-Id": "mine"}
    )
    assert answer.id == "cmpl-mine"
    assert answer._request_id == "mine"
    other = client.completions.create(model=model, prompt="Hi", max_tokens=1)
    assert other._request_id
    assert other.id == f"cmpl-{other._request_id}"


def test_mistakes(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError, match="The model `other` does not exist") as missing:
        client.completions.create(model="other", prompt="Hi")
    assert missing.value.param == "model"
    for given in (
        {"max_tokens": -1},
        {"temperature": 3},
        {"logprobs": 1000},
        {"n": 0},
        {"prompt": ""},
        {"prompt": "word " * 5000},
        {"prompt": [10**9]},
        {"stop": 7},
        {"suffix": "end"},
        {"extra_body": {"no_such_field": 1}},
        {"extra_body": {"guided_json": {}}},
        {"extra_body": {"structured_outputs": {"regex": "("}}},
        {"extra_body": {"response_format": {"type": "json_schema"}}},
    ):
        given: Any = {"model": model, "prompt": "Hi", **given}
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(**given)
        assert refused.value.body, given


def test_a_stream_that_cannot_begin_is_an_error(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=model, prompt="word " * 5000, stream=True)


def test_hang_ups_free_pages(client: openai.OpenAI, model: str, server: str) -> None:
    for _ in range(3):
        with client.completions.create(
            model=model,
            prompt=FRANCE,
            max_tokens=400,
            stream=True,
            extra_body={"ignore_eos": True},
        ) as stream:
            next(iter(stream))
    end = time.monotonic() + 20
    while busy(server):
        assert time.monotonic() < end
        time.sleep(0.05)


def busy(server: str) -> float:
    lines = httpx.get(f"{server}/metrics").text.splitlines()
    names = ("vllm:num_requests_running{", "vllm:kv_cache_usage_perc{")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))


def test_the_parts_of_a_requests_time_are_measured(client: openai.OpenAI, server: str) -> None:
    client.completions.create(model="demo", prompt="2 + 3 =", max_tokens=3)
    found = dict(
        line.rsplit(" ", 1)
        for line in httpx.get(f"{server}/metrics").text.splitlines()
        if "_time_seconds_sum" in line or "_time_seconds_count" in line
    )

    def value(part: str, what: str) -> float:
        [text] = [
            v for k, v in found.items() if k.startswith(f"vllm:request_{part}_time_seconds_{what}")
        ]
        return float(text)

    assert value("queue", "count") == value("prefill", "count") == value("decode", "count") > 0
    parts = value("prefill", "sum") + value("decode", "sum")
    assert value("inference", "sum") == pytest.approx(parts, rel=1e-6)
