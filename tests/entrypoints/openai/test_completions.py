import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.entrypoints.openai.demo_api import (
    PARIS,
    complete,
    demo_app,
    demo_engine,
    post,
    refusal,
    stream_completion,
)


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(
        choice["text"]
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index
    )


def test_an_answer() -> None:
    answer = complete(model="demo", prompt=PARIS, max_tokens=7)
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["model"] == "demo"
    assert answer["system_fingerprint"].startswith("quire-")
    assert answer["choices"] == [
        {
            "index": 0,
            "text": " Paris.",
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] == len(demo_engine().get_tokenizer().encode(PARIS))
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_stream_is_the_whole_answer_in_pieces() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = stream_completion(prompt=PARIS, stream_options=options)
    assert len(chunks) > 1
    assert text_of(chunks) == " Paris."
    assert len({chunk["id"] for chunk in chunks}) == 1
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert last["choices"] == []
    assert last["usage"] == complete(prompt=PARIS)["usage"] == chunks[-1]["usage"]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)


def test_a_stream_tells_usage_only_if_asked() -> None:
    assert all("usage" not in chunk for chunk in stream_completion(prompt=PARIS))
    chunks = stream_completion(prompt=PARIS, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_several_prompts_and_outputs() -> None:
    prompts = [PARIS, "The capital of Italy is"]
    body: dict[str, Any] = {"prompt": prompts, "n": 2, "temperature": 0.01, "seed": 5}
    answer = complete(**body)
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert texts == [" Paris.", " Paris.", " Rome.", " Rome."]
    chunks = stream_completion(**body)
    assert [text_of(chunks, index) for index in range(4)] == texts
    ends = [c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1, 2, 3]


def test_token_ids_as_prompts() -> None:
    tokens = demo_engine().get_tokenizer().encode(PARIS)
    for prompt in (tokens, [tokens, tokens]):
        answer = complete(prompt=prompt, return_token_ids=True)
        assert {choice["text"] for choice in answer["choices"]} == {" Paris."}
        assert answer["choices"][0]["prompt_token_ids"] == tokens
        assert len(answer["choices"][0]["token_ids"]) == len(answer["choices"][-1]["token_ids"])
    assert complete(prompt=tokens, echo=True)["choices"][0]["text"] == PARIS + " Paris."


@pytest.mark.parametrize("echo", [False, True])
def test_logprobs(echo: bool) -> None:
    body: dict[str, Any] = {"prompt": PARIS, "logprobs": 2, "echo": echo, "max_tokens": 3}
    [choice] = complete(**body)["choices"]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    assert all(len(each) == len(told["tokens"]) for each in told.values())
    starts = [choice["text"][offset:] for offset in told["text_offset"]]
    assert all(map(str.startswith, starts, told["tokens"]))
    known = zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
    if echo:
        assert choice["text"].startswith(PARIS)
        assert next(known)[1:] == (None, None)
    assert all(top[token] == logprob and 2 <= len(top) <= 3 for token, logprob, top in known)
    chunks = stream_completion(**body)
    for key, values in told.items():
        pieces = [chunk["choices"][0]["logprobs"][key] for chunk in chunks]
        joined = [one for piece in pieces for one in piece]
        if key == "tokens":
            assert joined == values
        assert len(joined) == len(values)
    assert text_of(chunks) == choice["text"]


def test_the_prompt_alone() -> None:
    [choice] = complete(prompt=PARIS, max_tokens=0, echo=True, logprobs=1)["choices"]
    assert choice["text"] == "".join(choice["logprobs"]["tokens"]) == PARIS
    assert choice["finish_reason"] == "length"
    assert complete(prompt=PARIS, max_tokens=0, echo=True)["usage"]["completion_tokens"] == 0
    assert text_of(stream_completion(prompt=PARIS, max_tokens=0, echo=True)) == PARIS


def test_logprobs_of_the_prompt_by_id() -> None:
    [choice] = complete(prompt=PARIS, prompt_logprobs=1)["choices"]
    first, *others = choice["prompt_logprobs"]
    assert first is None
    tokens = demo_engine().get_tokenizer().encode(PARIS)
    assert all(str(token) in other for token, other in zip(tokens[1:], others, strict=True))


def test_tokens_named_by_ids() -> None:
    for options, body in (({}, {"return_tokens_as_token_ids": True}), (AS_IDS, {})):
        [choice] = complete(options, prompt=PARIS, logprobs=0, return_token_ids=True, **body)[
            "choices"
        ]
        names = [f"token_id:{token}" for token in choice["token_ids"]]
        assert choice["logprobs"]["tokens"] == names


AS_IDS = {"return_tokens_as_token_ids": True}


def test_streamed_token_ids_are_the_whole_ones() -> None:
    [choice] = complete(prompt=PARIS, return_token_ids=True)["choices"]
    chunks = stream_completion(prompt=PARIS, return_token_ids=True, stop=["never"])
    assert choice["token_ids"] == [
        token for chunk in chunks for token in chunk["choices"][0]["token_ids"]
    ]
    told = [chunk["choices"][0].get("prompt_token_ids") for chunk in chunks]
    assert told == [choice["prompt_token_ids"]] + [None] * (len(chunks) - 1)


def test_stops() -> None:
    [choice] = complete(prompt=PARIS, stop="ri")["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (" Pa", "stop", "ri")
    [choice] = complete(prompt=PARIS, stop=["ri"], include_stop_str_in_output=True)["choices"]
    assert choice["text"] == " Pari"
    last = stream_completion(prompt=PARIS, stop="ri")[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", "ri")


def test_beam_search() -> None:
    answer = complete(prompt=[PARIS] * 2, use_beam_search=True, n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["choices"][0]["text"] == answer["choices"][2]["text"] == " Paris."
    assert answer["choices"][1]["text"] != " Paris."
    assert answer["usage"]["completion_tokens"] > 0


def test_structures() -> None:
    for structure, text in (({"choice": ["Oslo", "Rome"]}, "Rome"), ({"regex": "[0-9]{3}"}, None)):
        body: dict[str, Any] = {"prompt": "The capital of Italy is ", "max_tokens": 9}
        found = complete(**body, structured_outputs=structure)["choices"][0]["text"]
        assert found == text or found.isdigit()
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object", "required": ["a"]}},
    }
    found = complete(prompt="JSON: ", response_format=wanted, max_tokens=99)["choices"][0]
    assert found["finish_reason"] == "length" or "a" in json.loads(found["text"])
    error = refusal("/v1/completions", {"prompt": "x", "structured_outputs": {"regex": "("}})
    assert "regex" in error["message"]


def test_truncated_prompts() -> None:
    tokens = demo_engine().get_tokenizer().encode(PARIS)
    for side, left in (("left", tokens[-3:]), ("right", tokens[:3])):
        body: dict[str, Any] = {"truncate_prompt_tokens": 3, "truncation_side": side}
        for prompt in (PARIS, tokens):
            answer = complete(prompt=prompt, return_token_ids=True, **body)
            assert answer["choices"][0]["prompt_token_ids"] == left
    answer = complete(prompt="x " * 900, truncate_prompt_tokens=-1, max_tokens=4, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 4
    [choice] = complete(prompt=PARIS, truncate_prompt_tokens=3, echo=True)["choices"]
    assert choice["text"].startswith(demo_engine().get_tokenizer().decode(tokens[-3:]))
    plain = complete(prompt=PARIS, add_special_tokens=False)
    assert plain["choices"][0]["text"] == " Paris."


def test_the_id_may_be_the_clients() -> None:
    assert complete(prompt=PARIS, request_id="abc")["id"] == "cmpl-abc"


def test_salted_prompts_share_no_pages() -> None:
    prompt = "One two three four five six seven eight nine ten. " * 4

    def cached(salt: str) -> int:
        answer = complete(prompt=prompt, max_tokens=1, cache_salt=salt)
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached("a") == 0
    assert cached("a") > 0
    assert cached("b") == 0


def test_an_unknown_model() -> None:
    response = post("/v1/completions", {"prompt": "x", "model": "gpt"})
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "model"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_hang_up_ends_the_request(stream: bool, begun: bool) -> None:
    async def main() -> None:
        body = {"prompt": [PARIS] * 2, "ignore_eos": True, "max_tokens": 400, "stream": stream}
        gone = asyncio.Event()
        sent: list[dict[str, Any]] = []
        task = asyncio.create_task(demo_app()(_scope(), _receive(body, gone), _send(sent)))
        await _until(lambda: demo_engine().stats().num_running > 0)
        if begun and stream:
            await _until(lambda: len(sent) > 2)
        gone.set()
        await asyncio.wait_for(task, 10)
        await _until(lambda: demo_engine().stats().pages_in_use == 0)
        assert demo_engine().stats().num_running == 0
        assert b"[DONE]" not in b"".join(one.get("body", b"") for one in sent)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_slow_reader_gets_longer_chunks() -> None:
    async def main() -> None:
        body = {"prompt": PARIS, "ignore_eos": True, "max_tokens": 60, "stream": True}
        sent: list[dict[str, Any]] = []

        async def slow(message: Any) -> None:
            sent.append(message)
            await asyncio.sleep(0.1)

        await demo_app()(_scope(), _receive(body, asyncio.Event()), slow)
        bodies = [one["body"] for one in sent if one.get("body")]
        assert len(bodies) < 50
        assert bodies[-1].endswith(b"data: [DONE]\n\n")

    asyncio.run(asyncio.wait_for(main(), 60))


def _scope() -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }


def _receive(body: dict[str, Any], gone: asyncio.Event) -> Any:
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


def _send(sent: list[dict[str, Any]]) -> Any:
    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    return send


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)
