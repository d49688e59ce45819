"""The packed buffer, from schedule to what the step unpacks."""

import jax.numpy as jnp
import numpy as np
import pytest

from quire.engine.batch import BatchBuilder, Layout, RowField
from quire.engine.buckets import Program, Variant
from quire.engine.request import Request, Sequence
from quire.engine.sampling_params import SamplingParams
from quire.engine.schedule import Chunk, Schedule
from quire.engine.step import sampling_rows, token_batch

PAGE = 4


def running(slot: int, tokens: list[int], params: SamplingParams) -> Sequence:
    request = Request("r", None, tokens, params, arrival=slot)
    sequence = Sequence(request, 0, tokens, len(tokens), 64, key=(7, 2**32 - 1))
    sequence.slot = slot
    return sequence


@pytest.fixture
def schedule() -> Schedule:
    """A decode row whose token only the device knows, and three tokens of a prompt."""
    greedy = running(2, [5, 6, 7], SamplingParams(temperature=0))
    prompt = running(0, [10, 11, 12, 13, 14], SamplingParams(temperature=0.5, top_k=3, seed=1))
    return Schedule(
        chunks=[Chunk(greedy, 3, 1, True), Chunk(prompt, 1, 3, False)],
        num_tokens=4,
        new_pages=[(0, 0, 9)],
    )


def build(schedule: Schedule, program: Program) -> tuple[np.ndarray, ...]:
    builder = BatchBuilder(num_slots=3, page_size=PAGE)
    for chunk in schedule.chunks:
        builder.admit(chunk.sequence, chunk.sequence.request.params)
    packed = builder.build(schedule, program)
    assert packed.shape == (Layout.of(program, PAGE).size,)
    return Layout.of(program, PAGE).sections(packed)


def test_a_mixed_batch_unpacks_to_what_was_scheduled(schedule: Schedule) -> None:
    program = Program(decode=False, tokens=8, rows=3, variant=Variant.SAMPLED)
    rows, patches, tokens, token_rows, _ = build(schedule, program)
    assert tokens[:4].tolist() == [-1, 11, 12, 13]
    assert token_rows.tolist() == [0, 1, 1, 1, 2, 2, 2, 2]
    assert rows[:, RowField.SLOT].tolist() == [2, 0, 3]
    assert rows[:, RowField.SAMPLES].tolist() == [1, 0, 0]
    assert patches[0].tolist() == [0, 0, 9]
    assert (patches[1:, 0] > 3).all()  # beyond the table: dropped

    table = jnp.array([[2, 3], [9, 4], [0, 0]])
    batch = token_batch(program, PAGE, jnp.asarray(rows), jnp.asarray(token_rows), table)
    assert batch.positions.tolist() == [3, 1, 2, 3, 0, 0, 0, 0]
    assert (
        batch.write_index.tolist()
        == [2 * PAGE + 3, 9 * PAGE + 1, 9 * PAGE + 2, 9 * PAGE + 3] + [0] * 4
    )
    assert batch.lengths.tolist() == [4, 4, 0]
    assert batch.query_starts.tolist() == [0, 1, 4, 4]
    assert not batch.decode


def test_sampling_parameters_survive_the_trip(schedule: Schedule) -> None:
    program = Program(decode=False, tokens=8, rows=3, variant=Variant.SAMPLED)
    rows, *_ = build(schedule, program)
    settings = sampling_rows(jnp.asarray(rows))
    assert settings.temperature.tolist() == [0.0, 0.5, 0.0]
    assert settings.top_k.tolist() == [0, 3, 0]
    assert settings.repetition.tolist() == [1.0, 1.0, 1.0]
    assert settings.key[0].tolist() == [7, 2**32 - 1]
    assert settings.position.tolist() == [4, 4, 0]


def test_a_decode_batch_pads_with_rows_that_own_the_null_slot(schedule: Schedule) -> None:
    program = Program(decode=True, tokens=4, rows=4, variant=Variant.GREEDY)
    del schedule.chunks[1]
    schedule.num_tokens, schedule.new_pages = 1, []
    rows, patches, tokens, *_ = build(schedule, program)
    assert len(tokens) == 0
    assert rows[:, RowField.TOKEN].tolist() == [-1, 0, 0, 0]
    assert rows[:, RowField.SLOT].tolist() == [2, 3, 3, 3]
    assert (patches[:, 0] > 3).all()
    table = jnp.array([[8], [0], [0], [0]])
    batch = token_batch(program, PAGE, jnp.asarray(rows), jnp.arange(4), table)
    assert batch.write_index.tolist() == [8 * PAGE + 3, 0, 0, 0]
    assert batch.lengths.tolist() == [4, 0, 0, 0]
