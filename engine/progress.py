"""The progress bar of a `generate` call."""

import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .outputs import RequestOutput


class Progress:
    """Prompts done, with tokens per second in and out; silent unless `shown`."""

    def __init__(self, total: int, *, shown: bool) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=total, disable=not shown, desc="Generating", unit="prompt", dynamic_ncols=True
        )
        self._started = time.monotonic()
        self._tokens_in = self._tokens_out = 0

    def add(self, output: "RequestOutput") -> None:
        """Counts a finished request."""
        if self._bar.disable:
            return
        self._tokens_in += len(output.prompt_token_ids)
        self._tokens_out += sum(len(one.token_ids) for one in output.outputs)
        seconds = max(time.monotonic() - self._started, 1e-9)
        rates = f"in {self._tokens_in / seconds:.0f}, out {self._tokens_out / seconds:.0f} tok/s"
        self._bar.set_postfix_str(rates, refresh=False)
        self._bar.update()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
