"""A batch job from its beginning to its end."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import EngineClosedError, SamplingParams
from . import columns, resuming
from .answering import answer, complete, limits
from .journal import Journal
from .meter import Meter, Summary
from .plan import Plan, make_plan
from .rows import Form, Row
from .window import Limits, Window

if TYPE_CHECKING:
    from ... import AsyncEngine

Blocks = Iterator[list[Row]]


def run(
    input: str | Path,
    output: str | Path,
    model: str | Path | None = None,
    *,
    engine: "AsyncEngine | None" = None,
    sampling_params: SamplingParams | Mapping[str, Any] | None = None,
    use_tqdm: bool = True,
    **options: Any,
) -> Summary:
    """Answers the rows of a file, in their order, into another; the formats follow from the names.

    A run that was killed goes on behind what it has answered when it is asked for again.

    Args:
        input: JSON lines or Parquet: prompts, conversations, or lines of OpenAI's batch files.
        output: JSON lines or Parquet.
        model: as for `Engine`, which is made for the job and closed after it.
        engine: one to use instead; it stays open.
        sampling_params: for rows that do not set their own; what a dict leaves out comes from the
            model's generation config.
        use_tqdm: shows progress and tokens per second.
        **options: the fields of `BatchOptions`, and those of `EngineOptions` for `model`.

    Raises:
        OptionError and what `Engine` raises: before anything is answered. A row that cannot be
            answered is a row with an error in the output.
        EngineClosedError, OSError: the job can go on when it is asked for again, and so it can
            after KeyboardInterrupt.
    """
    plan = make_plan(input, output, model, engine, sampling_params, options)
    overwrite = plan.asking.options.overwrite
    resumed = resuming.check(plan.files, plan.settings, overwrite=overwrite)
    with Journal(plan.files.journal) as journal:
        errors = journal.recover(_failed(plan)) if resumed else 0
        blocks = plan.source.blocks(journal.rows, _needed(plan))
        first = next(blocks, None)
        with contextlib.ExitStack() as stack:
            asking = stack.enter_context(_opened(plan, engine)) if first else None
            resuming.begin(plan.files, plan.settings, journal, resumed=resumed)
            meter = Meter(journal.rows, errors, plan.source.count() if use_tqdm else None)
            stack.callback(meter.close)
            if first and asking:
                complete(_answer_all(*asking, chain([first], blocks), journal, meter))
        resuming.finish(plan.files, lambda: _write_table(plan))
        return meter.summary(plan.files.output)


@contextlib.contextmanager
def _opened(plan: Plan, engine: "AsyncEngine | None") -> Iterator[tuple[Form, Limits]]:
    """What answers rows, and how many at once.

    The engine is closed in the end; one that is given is left with the adapters that it had.
    """
    from ... import AsyncEngine

    with contextlib.ExitStack() as stack:
        if engine is None:
            made = AsyncEngine(plan.asking.model, **plan.asking.engine_options)
            engine = stack.enter_context(contextlib.closing(made))
        elif plan.asking.server.adapters:
            known = complete(engine.list_loras())
            stack.callback(lambda: complete(_forget_adapters(engine, known)))
        yield complete(_form(plan, engine)), limits(engine)


async def _forget_adapters(engine: "AsyncEngine", known: set[int]) -> None:
    """Removes all but the `known` ones."""
    with contextlib.suppress(EngineClosedError):
        for one in await engine.list_loras() - known:
            await engine.remove_lora(one)


async def _answer_all(
    form: Form, limits: Limits, blocks: Blocks, journal: Journal, meter: Meter
) -> None:
    """Reads, asks and writes. Files have a thread of their own, so that nobody waits for disks."""
    window = Window(functools.partial(answer, form), limits)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "quire-files") as files:
        rows = _rows(blocks, files)
        async with contextlib.aclosing(window.in_order(rows)) as ready:
            async for answers in ready:
                lines = [one.line for one in answers]
                await loop.run_in_executor(files, journal.append, lines)
                meter.add(answers)


async def _form(plan: Plan, engine: "AsyncEngine") -> Form:
    if not plan.openai:
        return await columns.Columns.open(
            engine,
            plan.asking.options,
            plan.asking.sampling,
            plan.asking.server.adapters,
            keep=plan.to_lines,
        )
    from .openai_lines import OpenAILines

    return await OpenAILines.open(
        engine, plan.asking.server, engine.options.model, plan.asking.sampling
    )


async def _rows(blocks: Blocks, files: ThreadPoolExecutor) -> AsyncGenerator[Row, None]:
    loop = asyncio.get_running_loop()
    while (block := await loop.run_in_executor(files, next, blocks, None)) is not None:
        for row in block:
            yield row


def _needed(plan: Plan) -> frozenset[str] | None:
    """The columns to read; None is all of them, which lines of output have."""
    return None if plan.to_lines else columns.read_columns(plan.asking.options)


def _failed(plan: Plan) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a line that was written is an error."""
    if not plan.openai:
        return functools.partial(columns.failed, options=plan.asking.options)
    from .openai_lines import failed

    return failed


def _write_table(plan: Plan) -> None:
    from .tables import write_parquet

    names = columns.result_columns(plan.asking.options)
    write_parquet(plan.source, plan.files.journal, plan.files.output, names)
