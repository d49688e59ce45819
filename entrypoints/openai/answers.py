"""What answers to completions and to chats have in common."""

import dataclasses
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from ... import RequestOutput, __version__
from .errors import bad_request
from .logprobs import TokenNames
from .protocol import GenerationRequest
from .service import Service

_USABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")


def head(kind: str, answer_id: str, model: str) -> dict[str, Any]:
    """The beginning of an answer, or of each of its chunks."""
    return {
        "id": answer_id,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": f"quire-{__version__}",
    }


def answer_id(prefix: str, request: GenerationRequest, http_request: Request | None = None) -> str:
    """The id of an answer: the client's, of the body or of a header, or one made up."""
    header = "" if http_request is None else http_request.headers.get("x-request-id", "")
    given = request.request_id or header
    known = given if _USABLE_ID.fullmatch(given) else uuid.uuid4().hex
    return f"{prefix}-{known}"


def engine_id(answer: str, index: int) -> str:
    """The id of request `index` of an answer. Clients may give one id to several at once."""
    return f"{answer}-{index}-{uuid.uuid4().hex[:8]}"


def check_priority(service: Service, request: GenerationRequest) -> None:
    """Raises ApiError for a priority that the scheduler would not look at."""
    if request.priority != 0 and service.engine.options.scheduling_policy != "priority":
        raise bad_request(
            f"priority={request.priority} needs a server started with --scheduling-policy "
            "priority. Start it so, or leave priority out.",
            "priority",
        )


def token_names(service: Service, request: GenerationRequest) -> TokenNames:
    """How the tokens of an answer are named."""
    as_ids = request.return_tokens_as_token_ids
    if as_ids is None:
        as_ids = service.options.return_tokens_as_token_ids
    return TokenNames(service.engine.get_tokenizer(), as_ids)


@dataclasses.dataclass(slots=True)
class Usage:
    """Counts the tokens of an answer."""

    prompts: dict[int, tuple[int, int]] = dataclasses.field(
        default_factory=dict[int, tuple[int, int]]
    )
    """Tokens, and cached ones of them, of each prompt seen so far."""
    completion_tokens: int = 0

    def see(self, index: int, output: RequestOutput) -> None:
        """Takes what is new of request `index`."""
        self.prompts[index] = (len(output.prompt_token_ids), output.num_cached_tokens)
        for one in output.outputs:
            self.completion_tokens += len(one.token_ids)

    def told(self) -> Mapping[str, Any]:
        """The usage so far, as clients are told."""
        prompt_tokens = sum(tokens for tokens, _ in self.prompts.values())
        cached = sum(cached for _, cached in self.prompts.values())
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


class UsageReport:
    """The usage in a stream: in each chunk, in one at the end, or nowhere."""

    def __init__(self, request: GenerationRequest) -> None:
        options = request.stream_options
        self._at_end = options is not None and bool(options.include_usage)
        self._always = options is not None and bool(options.continuous_usage_stats)
        self.usage = Usage()

    def of_chunk(self) -> dict[str, Any]:
        """What a chunk with choices tells."""
        if self._always:
            return {"usage": self.usage.told()}
        return {"usage": None} if self._at_end else {}

    def at_end(self, chunk_head: dict[str, Any]) -> list[dict[str, Any]]:
        """The last chunk, if it is asked for."""
        return [chunk_head | {"choices": [], "usage": self.usage.told()}] if self._at_end else []
