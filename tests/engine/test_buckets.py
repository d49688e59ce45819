"""The ladders of compiled shapes."""

import itertools

import pytest

from quire.engine.buckets import Buckets, Program, Variant


def test_ladders_end_at_the_limits() -> None:
    buckets = Buckets(max_num_seqs=48, max_num_batched_tokens=1000)
    assert buckets.decode_rows == (1, 2, 4, 8, 16, 32, 48)
    assert buckets.mixed_tokens == (64, 128, 256, 512, 1000)
    assert Buckets(4, 32).mixed_tokens == (32,)


def test_fine_ladders_take_smaller_steps_where_rows_cost_time() -> None:
    rows = Buckets(512, 8192, fine=True).decode_rows
    assert rows[:8] == (1, 2, 4, 8, 16, 32, 64, 80)
    assert rows[-4:] == (320, 384, 448, 512)
    assert all(later <= 1.25 * one for one, later in itertools.pairwise(rows) if one >= 64)
    assert Buckets(100, 8192, fine=True).decode_rows[-3:] == (80, 96, 100)
    assert Buckets(3, 8192, fine=True).decode_rows == (1, 2, 3)


def test_rare_variants_make_do_with_few_shapes() -> None:
    buckets = Buckets(512, 8192, fine=True)
    rows = {variant: buckets.decode(70, variant).rows for variant in Variant}
    assert rows == {
        Variant.GREEDY: 80,
        Variant.SAMPLED: 80,
        Variant.PENALIZED: 128,
        Variant.FULL: 128,
    }


def test_one_program_serves_everything() -> None:
    buckets = Buckets(8, 64, one_program=True)
    [program] = buckets.programs()
    assert program == Program(False, 64, 8, Variant.FULL, one_path=True)
    assert buckets.decode(1, Variant.GREEDY) == buckets.mixed(5, Variant.SAMPLED) == program


@pytest.mark.parametrize(("rows", "fits"), [(1, 1), (3, 4), (33, 48), (48, 48)])
def test_decode_takes_the_smallest_that_fits(rows: int, fits: int) -> None:
    assert Buckets(48, 1000).decode(rows, Variant.GREEDY).rows == fits


def test_mixed_has_no_more_rows_than_tokens() -> None:
    buckets = Buckets(max_num_seqs=256, max_num_batched_tokens=8192)
    assert buckets.mixed(3, Variant.FULL) == Program(False, 64, 64, Variant.FULL)
    assert buckets.mixed(5000, Variant.FULL) == Program(False, 8192, 256, Variant.FULL)


def test_a_mixed_program_can_stand_in_for_a_decode_one_but_not_the_reverse() -> None:
    decode = Program(True, 8, 8, Variant.GREEDY)
    mixed = Program(False, 64, 64, Variant.SAMPLED)
    assert mixed.covers(decode)
    assert not decode.covers(Program(False, 8, 8, Variant.GREEDY))
    assert not Program(False, 64, 64, Variant.GREEDY).covers(mixed)


def test_every_batch_within_the_limits_has_a_planned_program() -> None:
    buckets = Buckets(max_num_seqs=8, max_num_batched_tokens=100, growth=4)
    planned = set(buckets.programs())
    for variant in Variant:
        assert {buckets.decode(rows, variant) for rows in range(1, 9)} <= planned
        assert {buckets.mixed(tokens, variant) for tokens in range(1, 101)} <= planned
    assert buckets.largest in planned
    assert len(planned) == len(buckets.programs()) == 4 * (4 + 2)
