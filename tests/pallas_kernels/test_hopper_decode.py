"""The Hopper decode kernel against its twin: interpreted anywhere, compiled on a GPU."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quire.pallas_kernels import hopper_decode, reference

pytestmark = pytest.mark.skipif(
    jax.__version_info__ < (0, 11, 2),
    reason=f"Pallas of jax {jax.__version__} lacks what the kernel needs; 0.11.2 has it",
)

INTERPRETED = pytest.param(True, id="interpreted")
GPU = pytest.param(False, id="gpu", marks=pytest.mark.gpu)
STATIC = ("scale", "window", "soft_cap")
CUTS = ("split_tokens", "cores", "interpret")
TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2}
LENGTHS = [1, 0, 127, 128, 129, 300, 16, 17]

twin = jax.jit(reference.paged_decode, static_argnames=STATIC)
compiled = jax.jit(hopper_decode.paged_decode, static_argnames=STATIC + CUTS)


class Case(NamedTuple):
    """The arrays of a call; the pool is NaN outside the tokens of the rows."""

    q: jax.Array
    k_pool: jax.Array
    v_pool: jax.Array
    page_table: jax.Array
    lengths: jax.Array

    def rows(self, *rows: int) -> "Case":
        at = np.array(rows)
        return self._replace(q=self.q[at], page_table=self.page_table[at], lengths=self.lengths[at])


def make_case(
    lengths: list[int],
    *,
    dtype: str = "bfloat16",
    page: int = 16,
    columns: int | None = None,
    kv_heads: int = 2,
    groups: int = 4,
    width: int = 64,
) -> Case:
    rng = np.random.default_rng(0)
    needed = [-(-length // page) for length in lengths]
    free = rng.permutation(sum(needed)) + 1
    shape = (len(free) + 1, page, kv_heads, width)
    pools = np.full((2, *shape), np.nan, np.float32)
    table = np.zeros((len(lengths), columns or max(needed)), np.int32)
    for row, (length, count) in enumerate(zip(lengths, needed, strict=True)):
        table[row, :count], free = free[:count], free[count:]
        at = np.arange(length)
        values = rng.normal(size=(2, length, kv_heads, width))
        pools[:, table[row, at // page], at % page] = values
    q = rng.normal(size=(len(lengths), kv_heads * groups, width))
    q, k, v = (jnp.asarray(x, dtype) for x in (q, *pools))
    return Case(q, k, v, jnp.asarray(table), jnp.asarray(lengths, jnp.int32))


def run(case: Case, interpret: bool, **options: Any) -> np.ndarray:
    kernel = hopper_decode.paged_decode if interpret else compiled
    cores = {"cores": 2} if interpret else {}
    options = {"scale": 0.2, "split_tokens": 128} | cores | options
    out = kernel(*case, interpret=interpret, **options)
    assert out.dtype == case.q.dtype
    return np.asarray(out, np.float32)


def check(case: Case, interpret: bool, **options: Any) -> None:
    got = run(case, interpret, **options)
    exact = [x.astype(jnp.float32) for x in case[:3]]
    shared = {"scale": 0.2} | {name: value for name, value in options.items() if name in STATIC}
    want = twin(*exact, case.page_table, case.lengths, **shared)
    tolerance = TOLERANCE[case.q.dtype.name]
    np.testing.assert_allclose(got, np.asarray(want), atol=tolerance, rtol=tolerance)


INTERPRETED_TOO = [
    # each option and shape of its own once, together as they may be: interpreting is slow
    ([130, 0, 17], {"dtype": "bfloat16"}, {}),
    ([140], {"dtype": "float16", "groups": 16}, {"soft_cap": 2.0}),
    ([300], {"kv_heads": 1}, {"window": 150}),
    ([140, 70], {"width": 96, "groups": 1}, {"window": 37}),
    ([5, 0], {"width": 256, "groups": 3}, {"split_tokens": 512}),
    ([130], {"page": 128, "columns": 2, "width": 128}, {"soft_cap": 0.5, "window": 100}),
    ([20, 15], {"page": 8, "columns": 21, "groups": 7}, {}),
    ([300], {"kv_heads": 1, "groups": 9}, {"split_tokens": None, "cores": 3}),
]


def name(value: Any) -> str:
    return str(value).replace(" ", "")


@pytest.mark.parametrize("interpret", [INTERPRETED, GPU])
@pytest.mark.parametrize(("lengths", "shape", "options"), INTERPRETED_TOO, ids=name)
def test_matches_the_twin(
    interpret: bool, lengths: list[int], shape: dict[str, Any], options: dict[str, Any]
) -> None:
    check(make_case(lengths, **shape), interpret, **options)


@pytest.mark.parametrize("interpret", [INTERPRETED, GPU])
def test_a_row_is_the_same_alone_and_in_a_batch(interpret: bool) -> None:
    case = make_case([150, 20] if interpret else LENGTHS)
    count = len(case.lengths)
    for options in ({},) if interpret else ({}, {"split_tokens": None}):
        together = run(case, interpret, **options)
        for row in (0,) if interpret else (0, 2, 5):
            others = case.rows(*range(1, count), 0)  # so that it is at another place
            place = (row - 1) % count
            lengths = jnp.where(jnp.arange(count) == place, others.lengths, 0)
            alone = run(others._replace(lengths=lengths), interpret, **options)
            np.testing.assert_array_equal(alone[place], together[row])


@pytest.mark.parametrize("interpret", [INTERPRETED, GPU])
def test_rows_without_tokens_are_zero(interpret: bool) -> None:
    out = run(make_case([0, 0, 20], columns=20), interpret)
    assert not out[:2].any()
    assert out[2].all()


def test_no_access_to_shared_memory_races() -> None:
    races = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call")
    run(make_case([200, 70], kv_heads=4), True)
    assert not races.get_races().races_found


@pytest.mark.gpu
@pytest.mark.parametrize("groups", range(1, 17))
@pytest.mark.parametrize("width", [64, 96, 128, 256])
def test_head_shapes_match_the_twin(groups: int, width: int) -> None:
    dtype = "float16" if groups % 3 == 0 else "bfloat16"
    check(make_case(LENGTHS, dtype=dtype, kv_heads=4, groups=groups, width=width), False)


@pytest.mark.gpu
@pytest.mark.parametrize("page", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize(("kv_heads", "width"), [(1, 64), (4, 64), (2, 128)])
def test_page_sizes_match_the_twin(page: int, kv_heads: int, width: int) -> None:
    columns = 512 // page
    case = make_case(LENGTHS, page=page, columns=columns, kv_heads=kv_heads, width=width, groups=2)
    for window in (None, 37):
        check(case, False, window=window, split_tokens=256)


@pytest.mark.gpu
@pytest.mark.parametrize("times", [1, 8, 40])
def test_long_rows_match_the_twin(times: int) -> None:
    lengths = [10_000, 1, 0, 777, 640, 641]
    case = make_case(lengths, columns=640, kv_heads=8, width=128)
    case = case.rows(*[*range(6)] * times)
    for window in (None, 4096):
        check(case, False, window=window, split_tokens=None)
