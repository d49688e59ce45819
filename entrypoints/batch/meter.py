"""What a batch job has done so far: a bar while it runs, a summary in the end."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from .rows import Answer


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """What a batch job did; as text, one line."""

    output: Path
    rows: int
    """Rows of the output."""
    resumed: int
    """How many of them an earlier run had answered."""
    errors: int
    """How many of all of them are errors."""
    prompt_tokens: int
    """Of what this run answered."""
    completion_tokens: int
    """Of what this run answered."""
    seconds: float
    """That this run took to answer; the engine's start is not in them."""

    def __str__(self) -> str:
        before = f" ({self.resumed:,} of them by an earlier run)" if self.resumed else ""
        return (
            f"{self.output}: {_counted(self.rows, 'row')}{before}, "
            f"{_counted(self.errors, 'error')}; {self.prompt_tokens:,} tokens in and "
            f"{self.completion_tokens:,} out in {self.seconds:.1f} s "
            f"({_rate(self.prompt_tokens, self.seconds)} and "
            f"{_rate(self.completion_tokens, self.seconds)} tokens/s)"
        )


class Meter:
    """Counts answers from when it is made, beside those of an earlier run."""

    def __init__(self, resumed: int, errors: int, total: int | None) -> None:
        """`errors` are those of the earlier run; with a total of rows a bar is shown."""
        from tqdm.auto import tqdm

        self._resumed = self._rows = resumed
        self._errors = errors
        self._prompt_tokens = self._completion_tokens = 0
        self._started = time.monotonic()
        self._ended: float | None = None
        self._bar = tqdm(
            total=total,
            initial=resumed,
            disable=total is None,
            desc="Answering",
            unit="row",
            dynamic_ncols=True,
        )

    def add(self, answers: Sequence[Answer]) -> None:
        """Counts answers that are written."""
        self._rows += len(answers)
        self._errors += sum(one.failed for one in answers)
        self._prompt_tokens += sum(one.prompt_tokens for one in answers)
        self._completion_tokens += sum(one.completion_tokens for one in answers)
        if not self._bar.disable:
            self._bar.set_postfix_str(self._rates(), refresh=False)
            self._bar.update(len(answers))

    def summary(self, output: Path) -> Summary:
        """What was counted."""
        return Summary(
            output,
            self._rows,
            self._resumed,
            self._errors,
            self._prompt_tokens,
            self._completion_tokens,
            self._seconds(),
        )

    def close(self) -> None:
        """Stops the time, and leaves the bar as it is."""
        self._ended = time.monotonic()
        self._bar.close()

    def _seconds(self) -> float:
        now = time.monotonic() if self._ended is None else self._ended
        return now - self._started

    def _rates(self) -> str:
        rates = [
            _rate(count, self._seconds())
            for count in (self._prompt_tokens, self._completion_tokens)
        ]
        return f"in {rates[0]}, out {rates[1]} tok/s, {_counted(self._errors, 'error')}"


def _rate(count: int, seconds: float) -> str:
    return f"{count / max(seconds, 1e-9):,.0f}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
