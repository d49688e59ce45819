"""Products of one row with weights, as Mosaic kernels for Hopper GPUs.

`block_reference` defines them. Each weight comes from memory once, and all that counts is that
enough of it is on its way at any time. A thread block of one warpgroup holds the row in registers,
and some rows of the weight while it waits for the next ones; several blocks share an SM. They add
up whole sums, while a product by tensor cores has to be split along E to fill the GPU, and needs
a second kernel for the sums. Letters as in `block_reference`, and O columns of a product.

The row may be a norm of a sum, also of one over several GPUs. Every block works it out for itself
then, while its first weights are on their way: a kernel of its own would take longer.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from . import global_memory, peer_row
from .hopper_matmul import activated
from .peer_memory import Mailbox, lanes
from .row_norm import normed_row

_SMS, _THREADS, _REGISTERS = 132, 128, 65536
_VECTORS = 8, 4
"""Elements that one instruction may load."""
_ASKED = 64
"""Elements of weights that a thread asks for at once, unless one row has more."""
_MOST = 224
"""Registers of a thread for the row and the weights."""
_OTHERS = 36
"""Registers for anything else, where there is room."""
_NORMING = {0: (0, 0), 1: (3, 0), 2: (3, 12)}
_NORMING_MORE = 4, 28
"""Registers that a norm takes while weights are on their way, by the GPUs it sums over, as compiled
for 1024 to 8192 elements: for each element that a thread has, and others."""


class Plan(NamedTuple):
    """What is fixed when a kernel is traced."""

    batch: int
    """Rows of each matrix that are asked for at once."""
    blocks: int
    """As many as the GPU holds, if there is enough for them to do."""
    vector: int
    """Elements that one instruction loads."""


@functools.cache
def plan(
    matrices: int, out: int, width: int, dtype: DTypeLike, normed_over: int = 0
) -> Plan | None:
    """Of products with so many matrices [out, width]; None where they cannot run here.

    Args:
        normed_over: GPUs whose sum is normed; 0 where the row is given.
    """
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
    element, others = _NORMING.get(normed_over, _NORMING_MORE)
    each = min(max(held + _OTHERS, element * row + others), 255)
    resident = _REGISTERS // (_THREADS * (each + -each % 8))
    return Plan(batch, min(_SMS * resident, out // batch), vector)


class _Norm(NamedTuple):
    """A row that is a norm of x + y. In a kernel, references in place of its arrays."""

    x: Float[Array, "1 E"]
    y: Float[Array, "1 E"]
    weight: Float[Array, " E"]
    mailbox: Mailbox | None
    """Through which the y of all GPUs are to be added up."""


def matmul(
    x: Float[Array, "1 E"], w: Float[Array, "O E"], *, interpret: bool = False
) -> Float[Array, "1 O"]:
    """x times the transpose of w, where there is a `plan`. Needs jax 0.11.2.

    Args:
        interpret: run on any device, slowly.
    """
    [y] = _run("row_matmul", x, w[None], lambda y: y, interpret=interpret)
    return y


def gated_matmul(
    x: Float[Array, "1 E"], w: Float[Array, "2 F E"], *, activation: str, interpret: bool = False
) -> Float[Array, "1 F"]:
    """`block_reference.gated_matmul` of one row; arguments as for `matmul`."""
    [y] = _run("row_gated_matmul", x, w, _gate(activation), interpret=interpret)
    return y


def norm_matmul(
    x: Float[Array, "1 E"],
    y: Float[Array, "1 E"],
    weight: Float[Array, " E"],
    w: Float[Array, "O E"],
    mailbox: Mailbox | None = None,
    *,
    eps: float,
    interpret: bool = False,
) -> tuple[Float[Array, "1 E"], Float[Array, "1 O"]]:
    """`block_reference.norm_matmul` of one row; arguments as for `matmul`.

    Args:
        mailbox: for the sum of all GPUs' y, as in `peer_sum.add_rms_norm`.
    """
    row = _Norm(x, y, weight, mailbox)
    total, product = _run("row_norm_matmul", row, w[None], lambda y: y, eps, interpret=interpret)
    return total, product


def norm_gated_matmul(
    x: Float[Array, "1 E"],
    y: Float[Array, "1 E"],
    weight: Float[Array, " E"],
    w: Float[Array, "2 F E"],
    mailbox: Mailbox | None = None,
    *,
    eps: float,
    activation: str,
    interpret: bool = False,
) -> tuple[Float[Array, "1 E"], Float[Array, "1 F"]]:
    """`block_reference.norm_gated_matmul` of one row; arguments as for `norm_matmul`."""
    row, gate = _Norm(x, y, weight, mailbox), _gate(activation)
    total, product = _run("row_norm_gated_matmul", row, w, gate, eps, interpret=interpret)
    return total, product


def _gpus(given: Float[Array, "1 E"] | _Norm) -> int:
    """Whose sum is normed."""
    if not isinstance(given, _Norm):
        return 0
    return 1 if given.mailbox is None else given.mailbox.words.shape[1]


def _gate(activation: str) -> Callable[[Array, Array], Array]:
    return lambda gate, up: activated(activation, gate) * up


def _run(
    name: str,
    given: Float[Array, "1 E"] | _Norm,
    w: Float[Array, "N O E"],
    finish: Callable[..., Array],
    eps: float = 0.0,
    *,
    interpret: bool,
) -> list[Array]:
    """`finish` of the N sums of each column [1, O], behind the sum [1, E] that was normed."""
    from jax.experimental.pallas import mosaic_gpu as plgpu  # slow to import, and new in jax 0.11

    matrices, out, width = w.shape
    chosen = plan(matrices, out, width, w.dtype, _gpus(given))
    assert chosen is not None, "ask plan first"
    batch, blocks, vector = chosen
    whole, left = divmod(out // batch, blocks)
    layout = plgpu.Layout.WG_STRIDED((width,), vec_size=vector)
    load = functools.partial(global_memory.load, plgpu, layout=layout)

    def body(given: Any, w_ref: jax.Ref, *out_refs: jax.Ref) -> None:
        block = lax.axis_index("block")
        last = whole - 1 + (block < left).astype(jnp.int32)
        *sums, y_ref = out_refs

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

        first = ask(jnp.int32(0))
        if isinstance(given, _Norm):
            row = _normed(plgpu, given, *sums, layout, eps, block, blocks)
        else:
            row = load(given.at[0])
        row = row.astype(jnp.float32)
        lax.fori_loop(0, lax.div(last, jnp.int32(2)) + 1, two, first)

    shapes = [(1, width), (1, out)] if isinstance(given, _Norm) else [(1, out)]
    run = plgpu.kernel(
        body,
        out_type=[jax.ShapeDtypeStruct(shape, w.dtype) for shape in shapes],
        compiler_params=lanes(plgpu, approx_math=True),
        grid=(blocks,),
        grid_names=("block",),
        interpret=plgpu.InterpretGPUParams(detect_races=True) if interpret else None,
        kernel_name=name,
    )
    return run(given, w)


def _normed(
    gpu: Any,
    given: _Norm,
    total_ref: jax.Ref,
    layout: Any,
    eps: float,
    block: Array,
    blocks: int,
) -> Float[Array, " E"]:
    """The row, in one of so many thread blocks, of which the first writes the sum that is normed.

    `gpu` is the module of Mosaic.
    """
    load = functools.partial(global_memory.load, gpu, layout=layout)
    x, mailbox = load(given.x.at[0]), given.mailbox
    if mailbox is None:
        y = load(given.y.at[0])
    else:
        y = peer_row.summed(gpu, mailbox, given.y.at[0], layout, block)
    scale = load(given.weight)
    total = (x.astype(jnp.float32) + y.astype(jnp.float32)).astype(x.dtype)
    pl.when(block == 0)(lambda: global_memory.store(gpu, total_ref.at[0], total))
    row = normed_row(total, scale.astype(jnp.float32), eps)
    if mailbox is not None:  # behind the norm, for which all threads wait
        peer_row.leave(gpu, mailbox, block, blocks)
    return row
