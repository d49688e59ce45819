"""Outputs of the engine as the choices of a chat, whole or in chunks."""

import dataclasses
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ... import CompletionOutput, RequestOutput
from ..parsers import Arguments, CallStart, Chain, Content, Event, Reasoning, collect
from .answers import Usage, UsageReport
from .logprobs import TokenNames, chat_logprobs, prompt_logprobs
from .protocol import ChatCompletionRequest


@dataclasses.dataclass(frozen=True, slots=True)
class ChatForm:
    """What the answer to a request looks like."""

    request: ChatCompletionRequest
    parser: Callable[[], Chain]
    """Makes what reads one choice."""
    names: TokenNames
    role: str
    echo: str
    """What every choice begins with."""
    finishes_with_calls: bool
    """Whether calls are a reason to finish of their own."""
    one_call: bool
    """Only the first call is given."""

    def finish_reason(self, one: CompletionOutput, *, called: bool) -> str | None:
        """Why a choice ended."""
        if called and self.finishes_with_calls and one.finish_reason == "stop":
            return "tool_calls"
        return one.finish_reason

    def wanted(self, events: Iterable[Event]) -> Iterator[Event]:
        """The events that the client asked for."""
        for event in events:
            match event:
                case Reasoning() if not self.request.include_reasoning:
                    continue
                case CallStart(index) | Arguments(index) if self.one_call and index > 0:
                    continue
                case _:
                    yield event

    def logprobs(self, one: CompletionOutput) -> dict[str, Any] | None:
        """Those of the tokens of `one`, if they are asked for."""
        if one.logprobs is None:
            return None
        asked = self.request.top_logprobs or 0
        return chat_logprobs(one.token_ids, one.logprobs, asked, self.names)

    def token_ids(self, one: CompletionOutput) -> dict[str, Any]:
        """The tokens of `one`, if they are asked for."""
        return {"token_ids": one.token_ids} if self.request.return_token_ids else {}

    def of_prompt(self, output: RequestOutput) -> dict[str, Any]:
        """What is told of the prompt."""
        told: dict[str, Any] = {}
        if self.request.return_token_ids:
            told["prompt_token_ids"] = output.prompt_token_ids
        if self.request.return_prompt_text:
            told["prompt_text"] = output.prompt
        if self.request.prompt_logprobs is not None and output.prompt_logprobs is not None:
            told["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
        return told


def whole_answer(form: ChatForm, head: dict[str, Any], output: RequestOutput) -> dict[str, Any]:
    """The answer from a complete output."""
    usage = Usage()
    usage.see(0, output)
    choices = [_choice(form, one) for one in output.outputs]
    return head | {"choices": choices, "usage": usage.told()} | form.of_prompt(output)


def _choice(form: ChatForm, one: CompletionOutput) -> dict[str, Any]:
    parser = form.parser()
    read = collect(form.wanted([*parser.feed(one.text), *parser.finish()]))
    message: dict[str, Any] = {"role": form.role, "content": read.content}
    if form.echo or (read.content is None and read.reasoning is None and not read.calls):
        message["content"] = form.echo + (read.content or "")
    if read.reasoning is not None:
        message["reasoning"] = read.reasoning
    if read.calls:
        message["tool_calls"] = [
            _call(call_id()) | {"function": {"name": call.name, "arguments": call.arguments}}
            for call in read.calls
        ]
    return {
        "index": one.index,
        "message": message,
        "logprobs": form.logprobs(one),
        "finish_reason": form.finish_reason(one, called=bool(read.calls)),
        "stop_reason": one.stop_reason,
        **form.token_ids(one),
    }


class ChatChunks:
    """Makes the chunks of a streamed answer."""

    def __init__(self, form: ChatForm, head: dict[str, Any]) -> None:
        self._form = form
        self._head = head
        self._report = UsageReport(form.request)
        self._parsers = [form.parser() for _ in range(form.request.n)]
        self._called: set[int] = set()
        self._ended: set[int] = set()
        self._told_prompt = False

    def start(self) -> Iterator[dict[str, Any]]:
        """The role of each choice."""
        for index in range(self._form.request.n):
            yield self._chunk(index, {"role": self._form.role, "content": ""})
            if self._form.echo:
                yield self._chunk(index, {"content": self._form.echo})

    def of(self, index: int, output: RequestOutput) -> Iterator[dict[str, Any]]:
        """What is new of each choice. There is one request, so `index` is 0."""
        self._report.usage.see(index, output)
        extra = {} if self._told_prompt else self._form.of_prompt(output)
        self._told_prompt = True
        for one in output.outputs:
            if one.index in self._ended:
                continue
            for chunk in self._of_choice(one):
                yield chunk | extra
                extra = {}

    def end(self) -> list[dict[str, Any]]:
        """The usage, if it is asked for."""
        return self._report.at_end(self._head)

    def _of_choice(self, one: CompletionOutput) -> Iterator[dict[str, Any]]:
        parser = self._parsers[one.index]
        events = parser.feed(one.text) if one.text else []
        if one.finish_reason is not None:
            events += parser.finish()
        if any(isinstance(event, CallStart) for event in events):
            self._called.add(one.index)
        deltas = list(_deltas(self._form.wanted(events)))
        extra = self._form.token_ids(one)
        logprobs = self._form.logprobs(one) if one.token_ids else None
        if one.token_ids and not deltas and (extra or logprobs):
            deltas = [{}]
        for delta in deltas:
            yield self._chunk(one.index, delta, logprobs, **extra)
            # tokens belong to the first of the chunks they made
            logprobs, extra = None, {}
        if one.finish_reason is not None:
            yield self._last(one)

    def _last(self, one: CompletionOutput) -> dict[str, Any]:
        self._ended.add(one.index)
        reason = self._form.finish_reason(one, called=one.index in self._called)
        return self._chunk(one.index, {}, finish_reason=reason, stop_reason=one.stop_reason)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        **extra: Any,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
            **extra,
        }
        return self._head | {"choices": [choice]} | self._report.of_chunk()


def call_id() -> str:
    """The id of a call."""
    return f"chatcmpl-tool-{uuid.uuid4().hex}"


def _call(own_id: str) -> dict[str, Any]:
    return {"id": own_id, "type": "function"}


def _deltas(events: Iterable[Event]) -> Iterator[dict[str, Any]]:
    """A delta for each event; texts of one kind that follow each other are one."""
    pending: Event | None = None
    for event in events:
        together = _together(pending, event)
        if together is None and pending is not None:
            yield _delta(pending)
        pending = together or event
    if pending is not None:
        yield _delta(pending)


def _together(earlier: Event | None, later: Event) -> Event | None:
    match earlier, later:
        case Content(before), Content(after):
            return Content(before + after)
        case Reasoning(before), Reasoning(after):
            return Reasoning(before + after)
        case Arguments(index, before), Arguments(other, after) if index == other:
            return Arguments(index, before + after)
        case _:
            return None


def _delta(event: Event) -> dict[str, Any]:
    match event:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning": text}
        case CallStart(index, name):
            function = {"name": name, "arguments": ""}
            call = {"index": index, **_call(call_id()), "function": function}
            return {"tool_calls": [call]}
        case Arguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
