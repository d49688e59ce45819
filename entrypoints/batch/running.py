"""A batch job from its beginning to its end."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ... import EngineClosedError, SamplingParams
from . import columns, resuming
from .journal import Journal
from .meter import Meter, Summary
from .plan import Plan, make_plan
from .rows import Answer, Form, Row
from .window import Limits, Window

if TYPE_CHECKING:
    from ... import AsyncEngine

T = TypeVar("T")
Blocks = Iterator[list[Row]]
SEQUENCES = 256
"""That run at once, where the engine was not told otherwise."""
MEDIA_AHEAD = 64
"""Rows asked beyond those that run, of a model that takes media: what is in memory for them."""


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
    overwrite = plan.options.overwrite
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
                _complete(_answer_all(*asking, chain([first], blocks), journal, meter))
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
            made = AsyncEngine(plan.model, **plan.engine_options)
            engine = stack.enter_context(contextlib.closing(made))
        elif plan.server.adapters:
            known = _complete(engine.list_loras())
            stack.callback(lambda: _complete(_forget_adapters(engine, known)))
        yield _complete(_form(plan, engine)), _limits(engine)


async def _forget_adapters(engine: "AsyncEngine", known: set[int]) -> None:
    """Removes all but the `known` ones."""
    with contextlib.suppress(EngineClosedError):
        for one in await engine.list_loras() - known:
            await engine.remove_lora(one)


def _complete(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, on an event loop of its own; Ctrl-C cancels it.

    Where a loop runs in this thread, as in notebooks, another thread has that loop.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    begun: Future[Callable[[], object]] = Future()

    async def main() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        begun.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        return await work

    with ThreadPoolExecutor(1, "quire-batch") as thread:
        done = thread.submit(asyncio.run, main())
        try:
            return done.result()
        except KeyboardInterrupt:
            begun.result()()
            raise


async def _answer_all(
    form: Form, limits: Limits, blocks: Blocks, journal: Journal, meter: Meter
) -> None:
    """Reads, asks and writes. Files have a thread of their own, so that nobody waits for disks."""
    window = Window(functools.partial(_answer, form), limits)
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
            engine, plan.options, plan.sampling, plan.server.adapters, keep=plan.to_lines
        )
    from .openai_lines import OpenAILines

    return await OpenAILines.open(engine, plan.server, engine.options.model, plan.sampling)


async def _answer(form: Form, row: Row) -> Answer:
    """The answer to a row, whatever it is. Raises EngineClosedError."""
    if row.problem is not None:
        return form.refusal(row, ValueError(row.problem))
    try:
        return await form.answer(row)
    except EngineClosedError:
        raise
    except Exception as error:
        return form.refusal(row, error)


async def _rows(blocks: Blocks, files: ThreadPoolExecutor) -> AsyncGenerator[Row, None]:
    loop = asyncio.get_running_loop()
    while (block := await loop.run_in_executor(files, next, blocks, None)) is not None:
        for row in block:
            yield row


def _limits(engine: "AsyncEngine") -> Limits:
    """A step should always find others to run, and a long answer not hold up those behind it."""
    running = engine.options.max_num_seqs or SEQUENCES
    ahead = 3 * running if engine.modalities == {"text"} else MEDIA_AHEAD
    return Limits(asked=running + ahead, held=16 * running + ahead)


def _needed(plan: Plan) -> frozenset[str] | None:
    """The columns to read; None is all of them, which lines of output have."""
    return None if plan.to_lines else columns.read_columns(plan.options)


def _failed(plan: Plan) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a line that was written is an error."""
    if not plan.openai:
        return functools.partial(columns.failed, options=plan.options)
    from .openai_lines import failed

    return failed


def _write_table(plan: Plan) -> None:
    from .tables import write_parquet

    names = columns.result_columns(plan.options)
    write_parquet(plan.source, plan.files.journal, plan.files.output, names)
