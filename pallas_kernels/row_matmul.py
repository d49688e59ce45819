"""Products of one row with weights, as Mosaic kernels for Hopper GPUs.

`block_reference` defines them. Each weight comes from memory once, and all that counts is that
enough of it is on its way at any time. A thread block of one warpgroup holds the row in registers,
and some rows of the weight while it waits for the next ones; several blocks share an SM. They add
up whole sums, while a product by tensor cores has to be split along E to fill the GPU, and needs
a second kernel for the sums. Letters as in `block_reference`, and O columns of a product.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from . import global_memory
from .hopper_matmul import activated

_SMS, _THREADS, _REGISTERS = 132, 128, 65536
_VECTORS = 8, 4
"""Elements that one instruction may load."""
_ASKED = 64
"""Elements of weights that a thread asks for at once, unless one row has more."""
_MOST = 224
"""Registers of a thread for the row and the weights."""
_OTHERS = 36
"""Registers for anything else, where there is room."""


class Plan(NamedTuple):
    """What is fixed when a kernel is traced."""

    batch: int
    """Rows of each matrix that are asked for at once."""
    blocks: int
    """As many as the GPU holds, if there is enough for them to do."""
    vector: int
    """Elements that one instruction loads."""


@functools.cache
def plan(matrices: int, out: int, width: int, dtype: DTypeLike) -> Plan | None:
    """Of products with so many matrices [out, width]; None where they cannot run here."""
    vector = next((n for n in _VECTORS if width % (_THREADS * n) == 0), None)
    if vector is None or jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return None
    row = width // _THREADS
    whole = (n for n in (4, 2) if out % n == 0 and n * matrices * row <= _ASKED)
    batch = next(whole, 1)
    # the row in float32; of the weights in two bytes an element this batch, and the next
    held = row + batch * matrices * row
    if held > _MOST:
        return None
    each = min(held + _OTHERS, 255)
    resident = _REGISTERS // (_THREADS * (each + -each % 8))
    return Plan(batch, min(_SMS * resident, out // batch), vector)


def matmul(
    x: Float[Array, "1 E"], w: Float[Array, "O E"], *, interpret: bool = False
) -> Float[Array, "1 O"]:
    """x times the transpose of w, where there is a `plan`. Needs jax 0.11.2.

    Args:
        interpret: run on any device, slowly.
    """
    return _run("row_matmul", x, w[None], lambda y: y, interpret)


def gated_matmul(
    x: Float[Array, "1 E"], w: Float[Array, "2 F E"], *, activation: str, interpret: bool = False
) -> Float[Array, "1 F"]:
    """`block_reference.gated_matmul` of one row; arguments as for `matmul`."""

    def gated(gate: Array, up: Array) -> Array:
        return activated(activation, gate) * up

    return _run("row_gated_matmul", x, w, gated, interpret)


def _run(
    name: str,
    x: Float[Array, "1 E"],
    w: Float[Array, "N O E"],
    finish: Callable[..., Array],
    interpret: bool,
) -> Float[Array, "1 O"]:
    """`finish` of the N sums of each column."""
    from jax.experimental.pallas import mosaic_gpu as plgpu  # slow to import, and new in jax 0.11

    matrices, out, width = w.shape
    chosen = plan(matrices, out, width, x.dtype)
    assert chosen is not None, "ask plan first"
    batch, blocks, vector = chosen
    whole, left = divmod(out // batch, blocks)
    layout = plgpu.Layout.WG_STRIDED((width,), vec_size=vector)
    load = functools.partial(global_memory.load, plgpu, layout=layout)

    def body(x_ref: jax.Ref, w_ref: jax.Ref, y_ref: jax.Ref) -> None:
        block = lax.axis_index("block")
        last = whole - 1 + (block < left).astype(jnp.int32)
        row = load(x_ref.at[0]).astype(jnp.float32)

        def columns(number: Array) -> Iterable[Array]:
            # behind the last batch it is done again
            first = (jnp.minimum(number, last) * blocks + block) * batch
            return (first + n for n in range(batch))

        def ask(number: Array) -> list[list[Array]]:
            return [
                [load(w_ref.at[n, column]) for n in range(matrices)] for column in columns(number)
            ]

        def answer(number: Array, rows: list[list[Array]]) -> None:
            for column, parts in zip(columns(number), rows, strict=True):
                sums = [jnp.sum(part.astype(jnp.float32) * row) for part in parts]
                y_ref[0, column] = finish(*sums).astype(y_ref.dtype)

        def two(pair: Array, these: list[list[Array]]) -> list[list[Array]]:
            # in turn: to move what is on its way to other registers would be to wait for it
            those = ask(2 * pair + 1)
            answer(2 * pair, these)
            these = ask(2 * pair + 2)
            answer(2 * pair + 1, those)
            return these

        lax.fori_loop(0, lax.div(last, jnp.int32(2)) + 1, two, ask(jnp.int32(0)))

    run = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((1, out), x.dtype),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        grid=(blocks,),
        grid_names=("block",),
        interpret=plgpu.InterpretGPUParams(detect_races=True) if interpret else None,
        kernel_name=name,
    )
    return run(x, w)
