"""Lines of `quire generate --input`."""

import json

import pytest

from quire import CompletionOutput, OptionError, PromptError, QuireError, RequestOutput
from quire.entrypoints.jobs import Job, read_jobs, result


def read(*lines: object, **sampling: object) -> list[Job]:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return read_jobs("x.jsonl", texts, sampling)


def output(*texts: str) -> RequestOutput:
    return RequestOutput(
        request_id="0",
        prompt="p",
        prompt_token_ids=[1, 2, 3],
        prompt_logprobs=None,
        outputs=[
            CompletionOutput(index, text, list(range(len(text))), finish_reason="stop")
            for index, text in enumerate(texts)
        ],
        finished=True,
    )


def test_reads_prompts_and_conversations() -> None:
    messages = [{"role": "user", "content": "Hello"}]
    text, blank, ids, chat = {"prompt": "a"}, " \n", {"prompt": [1, 2]}, {"messages": messages}
    jobs = read(text, blank, ids, chat)
    assert [job.source for job in jobs] == ["a", [1, 2], messages]
    assert [job.is_chat for job in jobs] == [False, False, True]


def test_keeps_the_sampling_of_a_line_apart_from_the_rest() -> None:
    (job,) = read({"id": 7, "prompt": "a", "temperature": 0, "stop": ["x"]})
    assert job.sampling == {"temperature": 0, "stop": ["x"]}


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("{", PromptError, "not JSON"),
        ("[1]", PromptError, "a JSON list"),
        ({}, PromptError, "one of prompt and messages"),
        ({"prompt": "a", "messages": []}, PromptError, "not both"),
        ({"prompt": 5}, PromptError, "prompt=5 must be text or a list of token ids"),
        ({"prompt": []}, PromptError, r"prompt=\[\] must be"),
        ({"prompt": [True]}, PromptError, r"prompt=\[True\] must be"),
        ({"messages": "hi"}, PromptError, "messages='hi' must be a list of objects"),
        ({"prompt": "a", "temprature": 0}, OptionError, "'temprature'.* mean 'temperature'"),
        ({"prompt": "a", "top_p": 0}, OptionError, "top_p=0"),
        ({"prompt": "a", "logprobs": 1}, OptionError, "unknown field 'logprobs'"),
    ],
)
def test_a_bad_line_is_an_error_with_its_number(
    line: object, kind: type[QuireError], message: str
) -> None:
    with pytest.raises(kind, match=f"^x.jsonl, line 3: .*{message}"):
        read({"prompt": "fine"}, "", line)


def test_sampling_of_line_and_command_are_checked_together() -> None:
    with pytest.raises(OptionError, match="line 1: .*n must be 1"):
        read({"prompt": "a", "n": 2}, temperature=0.0)


def test_a_file_without_lines_is_an_error() -> None:
    with pytest.raises(PromptError, match="x.jsonl has no lines"):
        read("", "\n")


def test_a_result_is_its_line_and_more() -> None:
    job = Job({"id": "q", "prompt": "p", "temperature": 0})
    assert result(job, output("abc")) == {
        "id": "q",
        "prompt": "p",
        "temperature": 0,
        "text": "abc",
        "finish_reason": "stop",
        "completion_tokens": 3,
        "prompt_tokens": 3,
    }


def test_several_outputs_are_lists() -> None:
    answer = result(Job({"prompt": "p", "n": 2}), output("abc", "d"))
    assert answer["text"] == ["abc", "d"]
    assert answer["completion_tokens"] == [3, 1]
    assert answer["prompt_tokens"] == 3
