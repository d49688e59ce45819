"""Prompts in, answers out, as lines of JSON: the files of `quire generate --input`."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .. import OptionError, PromptError, QuireError, SamplingParams
from ..errors import nearest
from .arguments import SAMPLING_LEFT_OUT

if TYPE_CHECKING:
    from .. import RequestOutput

SOURCES = ("prompt", "messages")
SAMPLING = tuple(
    field.name
    for field in dataclasses.fields(SamplingParams)
    if field.name not in SAMPLING_LEFT_OUT
)
KEYS = (*SOURCES, "id", *SAMPLING)


@dataclasses.dataclass(frozen=True)
class Job:
    """One line: what to answer, and how."""

    line: dict[str, Any]

    @property
    def is_chat(self) -> bool:
        return "messages" in self.line

    @property
    def source(self) -> Any:
        """The prompt, or the messages of a conversation."""
        return self.line["messages" if self.is_chat else "prompt"]

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling parameters of the line's own, as keywords of `SamplingParams`."""
        return {name: self.line[name] for name in SAMPLING if name in self.line}


def read_jobs(name: str, lines: Iterable[str], sampling: Mapping[str, Any]) -> list[Job]:
    """The jobs of a file called `name`; empty lines are passed over.

    Args:
        sampling: parameters for lines that do not set their own.

    Raises:
        PromptError, OptionError: naming the line, for the first that is wrong.
    """
    jobs = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            job = _parse(text)
            SamplingParams(**{**sampling, **job.sampling})
        except QuireError as error:
            raise type(error)(f"{name}, line {number}: {error}") from error
        jobs.append(job)
    if not jobs:
        raise PromptError(f"{name} has no lines. Each must be {_FORM}.")
    return jobs


_FORM = 'a JSON object such as {"prompt": "..."} or {"messages": [...]}'


def _parse(text: str) -> Job:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise PromptError(f"not JSON ({error}). It must be {_FORM}.") from error
    if not isinstance(line, dict):
        raise PromptError(f"a JSON {type(line).__name__}. It must be {_FORM}.")
    for key in line:
        if key not in KEYS:
            raise OptionError(
                f"unknown field {key!r}.{nearest(key, KEYS)} Known: {', '.join(KEYS)}."
            )
    if sum(key in line for key in SOURCES) != 1:
        raise PromptError("it needs one of prompt and messages, and not both.")
    check_source(line)
    return Job(line)


def check_source(line: Mapping[str, Any]) -> None:
    """Raises PromptError for a prompt or messages of another type than they have."""
    prompt, messages = line.get("prompt"), line.get("messages")
    if "prompt" in line and not (isinstance(prompt, str) or _all_are(int, prompt)):
        raise PromptError(f"prompt={prompt!r} must be text or a list of token ids.")
    if "messages" in line and not _all_are(dict, messages):
        raise PromptError(f"messages={messages!r} must be a list of objects with role and content.")


def _all_are(kind: type, value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is kind for item in value)


def result(job: Job, output: "RequestOutput") -> dict[str, Any]:
    """The job's line with its answer added."""
    return {**job.line, **answer(output)}


def answer(output: "RequestOutput") -> dict[str, Any]:
    """What is told of an output; with n above 1 all but prompt_tokens are lists."""
    each = [
        {
            "text": one.text,
            "finish_reason": one.finish_reason,
            "completion_tokens": len(one.token_ids),
        }
        for one in output.outputs
    ]
    merged = {key: [one[key] for one in each] for key in each[0]}
    return {
        **(each[0] if len(each) == 1 else merged),
        "prompt_tokens": len(output.prompt_token_ids),
    }
