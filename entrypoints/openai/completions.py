"""`POST /v1/completions`."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ... import CompletionOutput, RequestOutput, SamplingParams
from .answers import UsageReport, answer_id, check_priority, engine_id, head, token_names
from .encoding import EnginePrompt, completion_prompts, decode
from .logprobs import Entry, completion_logprobs, prompt_logprobs
from .protocol import CompletionRequest
from .sampling import beam_params, completion_params
from .service import ServedModel, Service
from .streams import EventStream, json_response, last_outputs, unless_gone


async def create_completion(
    service: Service, request: CompletionRequest, http_request: Request
) -> Response:
    """Answers a request, as a whole or as a stream.

    Raises ApiError, ClientGoneError, or what the engine does.
    """
    own_id = answer_id("cmpl", request, http_request)
    if not request.stream or request.use_beam_search:  # which refuses to be streamed
        whole = completion(service, request, own_id)
        return json_response(await unless_gone(http_request.receive, whole))
    asked = await _read(service, request)
    return EventStream(_outputs(service, asked, own_id), asked.form(service, own_id))


async def completion(service: Service, request: CompletionRequest, own_id: str) -> dict[str, Any]:
    """The whole answer to a request, which bears `own_id`.

    Raises ApiError, or what the engine does.
    """
    asked = await _read(service, request)
    if request.use_beam_search:
        outputs = await _search(service, asked, own_id)
    else:
        outputs = await last_outputs(_outputs(service, asked, own_id))
    return asked.form(service, own_id).whole(outputs)


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """A request that has been read."""

    request: CompletionRequest
    model: ServedModel
    params: SamplingParams | None
    """None for a beam search."""
    prompts: list[EnginePrompt]

    def form(self, service: Service, own_id: str) -> "_Completion":
        """What makes its answer."""
        answer_head = head("text_completion", own_id, self.model.name)
        return _Completion(service, self.request, self.prompts, answer_head)


async def _read(service: Service, request: CompletionRequest) -> _Asked:
    model = service.find_model(request.model)
    check_priority(service, request)
    params = None
    if not request.use_beam_search:
        params = completion_params(request, service.default_params)
    return _Asked(request, model, params, await completion_prompts(service, request))


def _outputs(
    service: Service, asked: _Asked, own_id: str
) -> list[AsyncGenerator[RequestOutput, None]]:
    assert asked.params is not None, "a beam search is no stream"
    return [
        service.generate(
            prompt.as_dict(),
            asked.params,
            engine_id(own_id, index),
            priority=asked.request.priority,
            lora_request=asked.model.lora_request,
        )
        for index, prompt in enumerate(asked.prompts)
    ]


async def _search(service: Service, asked: _Asked, own_id: str) -> Sequence[RequestOutput]:
    params = beam_params(asked.request, max(asked.request.max_tokens, 1))
    return await asyncio.gather(
        *(
            service.beam_search(
                prompt.as_dict(),
                params,
                engine_id(own_id, index),
                lora_request=asked.model.lora_request,
            )
            for index, prompt in enumerate(asked.prompts)
        )
    )


class _Completion:
    """Makes the answer to one request."""

    def __init__(
        self,
        service: Service,
        request: CompletionRequest,
        prompts: Sequence[EnginePrompt],
        answer_head: dict[str, Any],
    ) -> None:
        self._service = service
        self._request = request
        self._prompts = prompts
        self._head = answer_head
        self._names = token_names(service, request)
        self._report = UsageReport(request)
        self._lengths: dict[int, int] = {}  # of the text so far, of the choices that have begun
        self._ended: set[int] = set()

    def whole(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """The answer from complete outputs."""
        choices: list[dict[str, Any]] = []
        for index, output in enumerate(outputs):
            self._see(index, output)
            choices += [self._choice(index, output, one) for one in output.outputs]
        return self._head | {"choices": choices, "usage": self._report.usage.told()}

    def start(self) -> Iterator[dict[str, Any]]:
        """Nothing: a chunk has text."""
        return iter(())

    def of(self, index: int, output: RequestOutput) -> Iterator[dict[str, Any]]:
        """A chunk for each choice with something new."""
        self._see(index, output)
        for one in output.outputs:
            number = self._number(index, one)
            if number in self._ended or not self._is_told(number, one):
                continue
            if one.finish_reason is not None:
                self._ended.add(number)
            choice = self._choice(index, output, one)
            yield self._head | {"choices": [choice]} | self._report.of_chunk()

    def end(self) -> list[dict[str, Any]]:
        """The usage, if it is asked for."""
        return self._report.at_end(self._head)

    def _see(self, index: int, output: RequestOutput) -> None:
        if self._request.max_tokens == 0:  # the engine makes one all the same
            for one in output.outputs:
                one.text, one.token_ids, one.logprobs = "", [], one.logprobs and []
                one.finish_reason, one.stop_reason = one.finish_reason and "length", None
        self._report.usage.see(index, output)

    def _number(self, index: int, one: CompletionOutput) -> int:
        return index * self._request.n + one.index

    def _is_told(self, number: int, one: CompletionOutput) -> bool:
        if one.text or one.finish_reason is not None or number not in self._lengths:
            return True
        wanted = self._request.logprobs is not None or self._request.return_token_ids
        return wanted and bool(one.token_ids)

    def _choice(self, index: int, output: RequestOutput, one: CompletionOutput) -> dict[str, Any]:
        number, request = self._number(index, one), self._request
        first = number not in self._lengths
        echoed = self._prompt_text(index, output) if first and request.echo else ""
        choice: dict[str, Any] = {
            "index": number,
            "text": echoed + one.text,
            "logprobs": self._logprobs(number, output, one, echoed=first and request.echo),
            "finish_reason": one.finish_reason,
            "stop_reason": one.stop_reason,
        }
        if request.return_token_ids:
            choice["token_ids"] = one.token_ids
            if first:
                choice["prompt_token_ids"] = output.prompt_token_ids
        if request.prompt_logprobs is not None and output.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
        self._lengths[number] = self._lengths.get(number, 0) + len(echoed) + len(one.text)
        return choice

    def _prompt_text(self, index: int, output: RequestOutput) -> str:
        text = self._prompts[index].text
        if text is not None:
            return text
        skip = self._request.skip_special_tokens
        return decode(self._service, output.prompt_token_ids, skip_special_tokens=skip)

    def _logprobs(
        self, number: int, output: RequestOutput, one: CompletionOutput, *, echoed: bool
    ) -> dict[str, Any] | None:
        if self._request.logprobs is None or one.logprobs is None:
            return None
        tokens = one.token_ids
        entries: Sequence[Entry | None] = one.logprobs
        if echoed and output.prompt_logprobs is not None:
            tokens = [*output.prompt_token_ids, *tokens]
            entries = [*output.prompt_logprobs, *entries]
        return completion_logprobs(tokens, entries, self._names, self._lengths.get(number, 0))
