"""A batch of prompts, run through `Engine.generate` and timed."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ... import OptionError
from ..arguments import engine_options
from .report import say
from .workload import Ask

if TYPE_CHECKING:
    from ... import Engine, RequestOutput


def open_engine(args: argparse.Namespace) -> "Engine":
    """The engine that the arguments ask for."""
    from ... import Engine

    return Engine(
        args.model,
        seed=args.seed,
        skip_tokenizer_init=args.skip_tokenizer_init,
        **{"use_tqdm_on_load": sys.stderr.isatty(), **engine_options(args)},
    )


def vocab_size(args: argparse.Namespace) -> int:
    """How many token ids the model has. For when the engine is there: it starts JAX."""
    from ... import model_info

    return model_info(args.model, **engine_options(args)).vocab_size


class Batch:
    """Prompts that are asked together. Ends of text are passed over, so that lengths are exact."""

    def __init__(self, engine: "Engine", asks: Sequence[Ask], sampling: dict[str, Any]) -> None:
        from ... import SamplingParams

        self._engine = engine
        self._prompts = [ask.prompt for ask in asks]
        self._params = [
            SamplingParams(**sampling, max_tokens=ask.output_len, ignore_eos=True) for ask in asks
        ]
        self.prompt_tokens = 0
        """Of all prompts together, once they have run."""
        self.output_tokens = 0

    def warm_up(self, runs: int) -> None:
        """Compiles what was planned, and runs until a run finds all its programs; `runs` at least.

        With 0 runs the first one that is timed may compile.
        """
        say("compiling")
        self._engine.wait_until_ready()
        number, compiled = 0, -1
        while number < runs or (runs and self._compiled() > compiled):
            number, compiled = number + 1, self._compiled()
            say(f"warm-up run {number}: {self.seconds():.3f} s")
            self._engine.wait_until_ready()

    def _compiled(self) -> int:
        return self._engine.stats().programs_compiled

    def seconds(self) -> float:
        """Of one run that finds nothing in the prefix cache.

        Raises OptionError where the model's length cut an output short.
        """
        self._engine.reset_prefix_cache()
        started = time.perf_counter()
        outputs = self._engine.generate(self._prompts, self._params, use_tqdm=sys.stderr.isatty())
        seconds = time.perf_counter() - started
        self._count(outputs)
        return seconds

    def _count(self, outputs: "Sequence[RequestOutput]") -> None:
        self.prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
        made = [len(output.outputs[0].token_ids) for output in outputs]
        self.output_tokens = sum(made)
        for number, (output, params) in enumerate(zip(outputs, self._params, strict=True)):
            if made[number] != params.max_tokens:
                raise OptionError(
                    f"prompt {number + 1}, of {len(output.prompt_token_ids)} tokens, got "
                    f"{made[number]} of {params.max_tokens} more, where the model's length ended. "
                    "Lower the lengths, or raise --max-model-len if the model can."
                )
