"""Lines of OpenAI's batch files: what they are answered, and that it is what the server answers."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai.types
import pytest
from openai.types.chat import ChatCompletion

from quire import AsyncEngine, OptionError, SamplingParams
from quire.batch import run
from quire.entrypoints.jobs import SAMPLING
from quire.entrypoints.openai.app import create_app
from quire.entrypoints.openai.options import ServerOptions
from quire.entrypoints.openai.protocol import GenerationRequest
from quire.entrypoints.openai.service import Service

from .conftest import ADAPTERS, CARS, FRANCE, ITALY, read_lines, without_ids, write_lines

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def line(url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": "a", "method": "POST", "url": url, "body": {"temperature": 0, **body}}


def answers(
    tmp_path: Path, engine: AsyncEngine, *lines: object, **options: Any
) -> list[dict[str, Any]]:
    """The output lines of a job of lines."""
    source, output = write_lines(tmp_path / "x.jsonl", *lines), tmp_path / "y.jsonl"
    summary = run(source, output, engine=engine, use_tqdm=False, **options)
    found = read_lines(output)
    failed = [one["response"] is None or one["response"]["status_code"] != 200 for one in found]
    assert (summary.rows, summary.errors) == (len(lines), sum(failed))
    return found


def test_a_chat_parses_as_openai_has_it(tmp_path: Path, engine: AsyncEngine) -> None:
    [found] = answers(tmp_path, engine, line(CHAT, model=None, messages=ITALY))
    assert list(found) == ["id", "custom_id", "response", "error"]
    assert found["id"].startswith("batch_req_")
    assert (found["custom_id"], found["error"]) == ("a", None)
    assert found["response"].keys() == {"status_code", "request_id", "body"}
    answer = ChatCompletion.model_validate(found["response"]["body"])
    assert answer.id.startswith("chatcmpl-")
    assert "Rome" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 5


def test_a_completion_parses_as_openai_has_it(tmp_path: Path, engine: AsyncEngine) -> None:
    body = {"prompt": [FRANCE, "The capital of Italy is"], "logprobs": 1, "request_id": "mine"}
    [found] = answers(tmp_path, engine, line(COMPLETIONS, **body))
    answer = openai.types.Completion.model_validate(found["response"]["body"])
    assert answer.id == "cmpl-mine"
    assert [("Paris" in one.text, "Rome" in one.text) for one in answer.choices] == [
        (True, False),
        (False, True),
    ]
    assert answer.choices[0].logprobs is not None


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": ITALY}),
    (CHAT, {"messages": ITALY, "n": 2, "temperature": 1.0, "seed": 3, "max_tokens": 4}),
    (CHAT, {"messages": ITALY, "logprobs": True, "top_logprobs": 2, "max_completion_tokens": 3}),
    (CHAT, {"messages": ITALY, "use_beam_search": True, "n": 2, "max_tokens": 4}),
    (CHAT, {"messages": ITALY, "response_format": {"type": "json_object"}, "max_tokens": 8}),
    (COMPLETIONS, {"prompt": FRANCE, "echo": True, "max_tokens": 4}),
    (COMPLETIONS, {"prompt": [FRANCE, "2 + 3 ="], "n": 2, "temperature": 0.5, "seed": 1}),
    (COMPLETIONS, {"prompt": FRANCE, "use_beam_search": True, "n": 2, "max_tokens": 4}),
    (COMPLETIONS, {"prompt": "word " * 200}),
    (COMPLETIONS, {"prompt": FRANCE, "temperature": 9}),
    (COMPLETIONS, {"prompt": FRANCE, "temprature": 0}),
    (COMPLETIONS, {"prompt": FRANCE, "model": "gpt-4o"}),
    (COMPLETIONS, {}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
]


async def served(engine: AsyncEngine, url: str, body: dict[str, Any]) -> httpx.Response:
    """What the server answers."""
    app = create_app(Service(engine, ServerOptions(), "demo"))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        return await client.post(url, json=body)


@pytest.mark.parametrize(("url", "body"), REQUESTS)
def test_it_is_what_the_server_answers(
    tmp_path: Path, engine: AsyncEngine, url: str, body: dict[str, Any]
) -> None:
    body = {"temperature": 0, **body}
    options = {"served_model_name": ["demo"]}
    [found] = answers(tmp_path, engine, line(url, **body), **options)
    response = asyncio.run(served(engine, url, body))
    expected = {"status_code": response.status_code, "request_id": "", "body": response.json()}
    [mine] = without_ids([found])
    [theirs] = without_ids([{**found, "response": expected}])
    assert mine == theirs
    assert mine["error"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"custom_id": None}, "custom_id=None must be text"),
        ({"custom_id": 7}, "custom_id=7 must be text"),
        ({"method": "GET"}, "method='GET' must be 'POST'"),
        ({"url": "/v1/embeddings"}, "url='/v1/embeddings' must be one of /v1/chat/completions"),
        ({"url": "/v1/completion"}, "Did you mean '/v1/completions'?"),
        ({"url": [1]}, "url=[1] must be one of"),
        ({"body": "text"}, "body='text' must be a JSON object"),
    ],
)
def test_a_line_that_is_no_request_has_no_response(
    tmp_path: Path, engine: AsyncEngine, changes: dict[str, Any], message: str
) -> None:
    good = line(COMPLETIONS, prompt=FRANCE)
    first, bad, last = answers(tmp_path, engine, good, {**good, **changes}, good)
    assert without_ids([first]) == without_ids([last])
    assert bad["response"] is None
    assert bad["custom_id"] == changes.get("custom_id", "a")
    assert bad["error"]["code"] == "invalid_line"
    assert message in bad["error"]["message"]


def test_broken_json_among_lines_is_an_error(tmp_path: Path, engine: AsyncEngine) -> None:
    broken, good = answers(tmp_path, engine, "{broken", line(COMPLETIONS, prompt=FRANCE))
    assert (broken["custom_id"], broken["response"]) == (None, None)
    assert broken["error"]["message"].startswith("Line 1 is not JSON: ")
    assert good["response"]["status_code"] == 200


def test_a_stream_is_refused(tmp_path: Path, engine: AsyncEngine) -> None:
    [found] = answers(tmp_path, engine, line(CHAT, messages=ITALY, stream=True))
    assert found["response"]["status_code"] == 400
    assert found["response"]["body"]["error"]["param"] == "stream"


def test_bodies_name_models_and_adapters(tmp_path: Path, engine: AsyncEngine) -> None:
    names = ("gpt-4o", "sql", None, "demo")
    lines = [line(COMPLETIONS, prompt=CARS, model=name, max_tokens=32) for name in names]
    options = {"served_model_name": ["gpt-4o"], "lora_modules": ADAPTERS}
    found = [one["response"] for one in answers(tmp_path, engine, *lines, **options)]
    assert [one["status_code"] for one in found] == [200, 200, 200, 404]
    assert [one["body"]["model"] for one in found[:3]] == ["gpt-4o", "sql", "gpt-4o"]
    plain, sql, default = (one["body"]["choices"][0]["text"] for one in found[:3])
    assert "SELECT" in sql
    assert plain == default != sql


def test_tools_are_read_as_the_server_does(tmp_path: Path, engine: AsyncEngine) -> None:
    chat = line(CHAT, messages=ITALY, tools=[TOOL], tool_choice="required", max_tokens=40)
    auto = line(CHAT, messages=ITALY, tools=[TOOL])
    options = {"enable_auto_tool_choice": True, "tool_call_parser": "llama3_json"}
    forced, free = answers(tmp_path, engine, chat, auto, **options)
    assert forced["response"]["body"]["choices"][0]["finish_reason"] in ("tool_calls", "length")
    assert free["response"]["status_code"] == 200
    [refused] = answers(tmp_path, engine, auto, overwrite=True)
    assert refused["response"]["status_code"] == 400


def test_sampling_comes_from_the_body_then_from_the_job(
    tmp_path: Path, engine: AsyncEngine
) -> None:
    lines = [line(COMPLETIONS, prompt=FRANCE, ignore_eos=True)]
    lines += [line(CHAT, messages=ITALY, max_tokens=None)]
    lines += [line(COMPLETIONS, prompt=FRANCE, ignore_eos=True, max_tokens=3)]
    given: list[Any] = [{"max_tokens": 5}, {"max_tokens": None}, None]
    given += [SamplingParams(max_tokens=6, logit_bias={5: 1.0}, structured_outputs=None)]
    counts: list[list[int]] = []
    for sampling in given:
        found = answers(tmp_path, engine, *lines, sampling_params=sampling, overwrite=True)
        usage = [one["response"]["body"]["usage"]["completion_tokens"] for one in found]
        counts.append(usage)
    assert counts == [[5, 5, 3], [16, 11, 3], [16, 11, 3], [6, 6, 3]]


def test_every_sampling_parameter_is_a_field_of_bodies() -> None:
    assert not set(SAMPLING) - GenerationRequest.model_fields.keys() - {"max_tokens"}


def test_lines_go_to_lines_alone(tmp_path: Path, engine: AsyncEngine) -> None:
    source = write_lines(tmp_path / "x.jsonl", line(CHAT, messages=ITALY))
    with pytest.raises(OptionError, match="has OpenAI lines, which .*y.parquet cannot hold"):
        run(source, tmp_path / "y.parquet", engine=engine)


WITHOUT_SERVER = """
import sys
sys.modules |= dict.fromkeys(("fastapi", "starlette", "pydantic", "prometheus_client"))
from quire.entrypoints.cli import main
sys.exit(main())
"""


def test_rows_of_columns_need_no_server(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "x.jsonl", line(CHAT, messages=ITALY))
    rows = write_lines(tmp_path / "r.jsonl", {"prompt": FRANCE})

    def batch(source: Path) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-W", "error", "-c", WITHOUT_SERVER, "batch", str(source)]
        command += [str(tmp_path / "y.jsonl"), "--temperature", "0", "--enforce-eager"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    refused = batch(lines)
    assert refused.returncode == 2
    needed = "has OpenAI lines, which need fastapi, prometheus_client, pydantic: run `pip install"
    assert needed in refused.stderr
    assert "'quire[server]'" in refused.stderr
    done = batch(rows)
    assert done.returncode == 0, done.stderr
    assert "Paris" in (tmp_path / "y.jsonl").read_text()
