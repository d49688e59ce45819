"""Log-probabilities from the device, made into what users read."""

import dataclasses
from typing import TYPE_CHECKING

import jax
import numpy as np

from .outputs import Logprob
from .request import Sequence
from .sampler import LogprobResult

if TYPE_CHECKING:
    from .runner import ModelRunner
    from .schedule import Chunk, Schedule
    from .step import StepOutput
    from .tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class StepLogprobs:
    """Log-probabilities of N tokens, on the host."""

    tokens: list[int]
    """The tokens they are about."""
    result: LogprobResult
    """Numpy arrays of N rows."""
    whole: dict[int, np.ndarray]
    """float32 [V] for those rows of which more was asked than `result` has."""

    def __len__(self) -> int:
        return len(self.tokens)


class LogprobReader:
    """Reads what was asked for out of a step."""

    def __init__(
        self, runner: "ModelRunner", tokenizer: "Tokenizer | None", top_logprobs: int
    ) -> None:
        """`top_logprobs` is how many likely tokens a step returns for each row."""
        self._runner = runner
        self._tokenizer = tokenizer
        self._top = top_logprobs

    def of_rows(
        self, schedule: "Schedule", output: "StepOutput", tokens: list[int]
    ) -> StepLogprobs | None:
        """Those of the sampled tokens; None where no row asks. Waits for the step."""
        asked = [chunk.sequence.request.params.logprobs for chunk in schedule.chunks]
        if output.logprobs is None or all(count is None for count in asked):
            return None
        rows = [row for row, count in enumerate(asked) if self._needs_all(count)]
        whole: dict[int, np.ndarray] = {}
        if rows:
            hidden = np.asarray(output.row_hidden)[rows]
            adapters = [schedule.chunks[row].sequence.adapter_slot for row in rows]
            whole = dict(zip(rows, self._runner.all_logprobs(hidden, adapters), strict=True))
        return StepLogprobs(tokens[: len(asked)], jax.tree.map(np.asarray, output.logprobs), whole)

    def of_prompts(
        self, schedule: "Schedule", output: "StepOutput"
    ) -> list[tuple[Sequence, int, StepLogprobs]]:
        """Those of prompt tokens, as (sequence, position of the first, log-probabilities)."""
        if output.hidden is None:
            return []
        found = []
        offset = 0
        hidden: np.ndarray | None = None
        for chunk in schedule.chunks:
            count = _prompt_targets(chunk)
            if count:
                if hidden is None:
                    hidden = np.asarray(output.hidden)
                part = hidden[offset : offset + count]
                found.append((chunk.sequence, chunk.start + 1, self._of_prompt(chunk, part)))
            offset += chunk.count
        return found

    def entry(self, logprobs: StepLogprobs, row: int, asked: int | None) -> dict[int, Logprob]:
        """Token id to Logprob: the token of the row first, then the `asked` likeliest ones."""
        token = logprobs.tokens[row]
        result = logprobs.result
        entry = {
            token: self._logprob(
                token, float(result.token_logprob[row]), int(result.token_rank[row])
            )
        }
        if row in logprobs.whole:
            ids, values = _likeliest(logprobs.whole[row], asked)
        else:
            ids, values = result.top_ids[row, :asked].tolist(), result.top_logprobs[row].tolist()
        for rank, (other, value) in enumerate(zip(ids, values, strict=False), start=1):
            entry.setdefault(other, self._logprob(other, value, rank))
        return entry

    def _of_prompt(self, chunk: "Chunk", hidden: np.ndarray) -> StepLogprobs:
        targets = chunk.sequence.tokens[chunk.start + 1 : chunk.start + 1 + len(hidden)]
        adapters = [chunk.sequence.adapter_slot] * len(hidden)
        result = self._runner.top_logprobs(hidden, adapters, np.array(targets, np.int32))
        whole: dict[int, np.ndarray] = {}
        if self._needs_all(chunk.sequence.request.params.prompt_logprobs):
            whole = dict(enumerate(self._runner.all_logprobs(hidden, adapters)))
        return StepLogprobs(targets, result, whole)

    def _needs_all(self, asked: int | None) -> bool:
        return asked is not None and (asked < 0 or asked > self._top)

    def _logprob(self, token: int, value: float, rank: int) -> Logprob:
        text = None if self._tokenizer is None else self._tokenizer.token_str(token)
        return Logprob(value, rank, text)


def _prompt_targets(chunk: "Chunk") -> int:
    """Tokens of the chunk whose next token belongs to a prompt that wants log-probabilities."""
    sequence = chunk.sequence
    if sequence.index or sequence.request.params.prompt_logprobs is None:
        return 0
    return max(0, min(chunk.start + chunk.count, sequence.prompt_len - 1) - chunk.start)


def _likeliest(logprobs: np.ndarray, asked: int | None) -> tuple[list[int], list[float]]:
    """Ids by falling log-probability, the lower id first among equals; all for a negative count."""
    order = np.argsort(-logprobs, kind="stable")
    if asked is not None and asked >= 0:
        order = order[:asked]
    return order.tolist(), logprobs[order].tolist()
