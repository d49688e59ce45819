"""How rows are cut into splits: each visible token once, the largest splits first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.pallas_kernels.decode_splits import BLOCK, Splits, splits

LENGTHS = [1, 0, 127, 128, 129, 300, 16, 17, 512, 511]


def cut(
    lengths: list[int],
    *,
    page: int = 16,
    columns: int = 640,
    window: int | None = None,
    cores: int = 132,
    split_tokens: int | None = None,
) -> tuple[np.ndarray, Splits]:
    table = jnp.arange(len(lengths) * columns, dtype=jnp.int32).reshape(len(lengths), -1)
    options = {"page": page, "window": window, "cores": cores, "split_tokens": split_tokens}
    work = splits(table, jnp.asarray(lengths, jnp.int32), bundles=4, **options)
    return np.asarray(table), jax.tree.map(np.asarray, work)


@pytest.mark.parametrize("window", [None, 1, 37, 300])
@pytest.mark.parametrize("page", [8, 64, 256])
@pytest.mark.parametrize("split_tokens", [128, 512, None])
def test_every_visible_token_is_in_one_split(
    window: int | None, page: int, split_tokens: int | None
) -> None:
    options = {"page": page, "window": window, "split_tokens": split_tokens}
    table, work = cut(LENGTHS, columns=512 // page, **options)
    chunk = min(page, BLOCK)
    for row, length in enumerate(LENGTHS):
        seen: list[int] = []
        first, count = work.starts[row], work.counts[row]
        for number, begin, end, *pages in work.items[first : first + count].tolist():
            assert number == row
            assert end - begin <= (split_tokens or 512)
            tokens = np.arange(begin - begin % chunk, end, chunk)[: BLOCK // chunk]
            assert pages[: len(tokens)] == list(table[row, tokens // page])
            seen.extend(range(begin, end))
        assert seen == list(range(max(0, length - (window or length)), length))
    assert work.starts[-1] == work.counts.sum()


def test_the_largest_come_first() -> None:
    _, work = cut(LENGTHS, cores=1)
    ends = work.items[: work.starts[-1], 2]
    assert ends.tolist() == [512, 511, 300, 129, 127, 128, 1, 16, 17]  # alike in blocks: in order


@pytest.mark.parametrize(
    ("rows", "length", "count"),
    [(1, 300, 5), (1, 1024, 8), (4, 300, 5), (32, 300, 1), (64, 1024, 2), (256, 1024, 1)],
)
def test_rows_are_cut_while_cores_are_idle(rows: int, length: int, count: int) -> None:
    _, work = cut([length] * rows)
    assert (work.counts == count).all()


@pytest.mark.parametrize("rows", [1, 4, 64, 256])
def test_the_longest_rows_fit(rows: int) -> None:
    _, work = cut([10240] * rows)
    assert work.starts[-1] <= len(work.items)
