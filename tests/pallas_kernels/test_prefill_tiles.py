"""The tables of the Hopper prefill kernel."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from quire.pallas_kernels.prefill_tiles import Tile, tiles, with_blocks


@pytest.mark.parametrize("size", [8, 32, 128])
@pytest.mark.parametrize("counts", [[0, 5, 1, 0, 33, 32, 1], [1] * 12, [64, 0, 0], [0], [9, 250]])
def test_tiles_cover_every_token_once_in_its_row(counts: list[int], size: int) -> None:
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    lengths, total = np.asarray(counts, np.int32) + 10, int(starts[-1]) + 7
    table = np.asarray(tiles(jnp.asarray(starts), jnp.asarray(lengths), total, size))
    covered = []
    for row, token, begin, end, shift, start, length in table[table[:, 2] < table[:, 3]]:
        assert token % 8 == 0
        assert token <= begin < end <= token + size
        covered += range(begin, end)
        if begin < starts[-1]:
            assert starts[row] <= begin < end <= starts[row + 1]
            assert length == lengths[row]
            assert shift == length - starts[row + 1]
            assert start == starts[row] + shift
        else:
            assert end + shift <= 0
    assert sorted(covered) == list(range(total))


def test_tiles_with_most_keys_come_first() -> None:
    table = tiles(jnp.asarray([0, 1, 65]), jnp.asarray([500, 64]), 70, 32)
    np.testing.assert_array_equal(table[:4, 2:4], [[0, 1], [64, 65], [32, 64], [1, 32]])


def test_tiles_leave_rows_out() -> None:
    skip = jnp.asarray([True, False, True])
    table = tiles(jnp.asarray([0, 1, 40, 41]), jnp.asarray([9, 50, 3]), 48, 32, skip)
    used = table[table[:, 2] < table[:, 3]]
    np.testing.assert_array_equal(used[:, 2:4], [[32, 40], [1, 32], [41, 48]])


@pytest.mark.parametrize("window", [None, 1, 20, 200])
def test_blocks_hold_what_the_queries_see(window: int | None) -> None:
    starts, lengths, keys = jnp.asarray([0, 30, 31, 50]), jnp.asarray([300, 65, 19]), 64
    table = np.asarray(with_blocks(tiles(starts, lengths, 60, 16), keys, window))
    for fields in table.tolist():
        tile: Any = Tile(*fields)
        position = np.arange(tile.begin, tile.end)[:, None] + tile.shift
        key = np.arange(320)
        seen = (key <= position) & (key > position - (window or 400))
        seen = seen.reshape(len(position), 5, keys)
        blocks = np.arange(seen.shape[1])
        some, all_ = seen.any(axis=(0, 2)), seen.all(axis=(0, 2)) & (len(position) > 0)
        np.testing.assert_array_equal(some, (blocks >= tile.start) & (blocks < tile.stop))
        np.testing.assert_array_equal(all_, (blocks >= tile.whole) & (blocks < tile.whole_end))
