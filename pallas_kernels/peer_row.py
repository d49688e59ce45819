"""A row that several Hopper GPUs have a part of, for kernels of many blocks that begin with it.

Every second word is the number of the call, in the way of NCCL's protocol LL: who finds it beside a
word knows that this word is there. It costs twice the bytes. But a flag behind the row would have
to wait for all of it to arrive, which takes as long as the way there and back. Rows go to two
places in turn, as in the slots of a `Mailbox`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from . import global_memory
from .peer_memory import THREADS, WORD, Mailbox, piece, pointer, words_of

_PAIRS = 2
"""Words that one instruction moves, each with its number."""
_BYTES = 2 * _PAIRS * WORD
_SHIFT = 12
"""Calls are counted in parts, so many bits of a call: more than it has thread blocks."""


def summed(
    gpu: Any, mailbox: Mailbox, part: jax.Ref, layout: Any, block: Array
) -> Float[Array, " E"]:
    """The sum of all GPUs' parts, in a kernel, the same bits on each.

    Every thread block of the kernel calls it, with its GPU's part; the first one sends it. When all
    threads of a block have the sum, it must call `leave`.

    Args:
        gpu: the module of Mosaic.
        mailbox: references in place of its arrays.
        layout: of the sum, with two words or more in a register.
        block: which one.
    """
    words, peers = mailbox.words, mailbox.peers
    devices = words.shape[1]
    me = peers[0, 0]
    number = ((mailbox.calls[0] >> _SHIFT) & (2 ** (32 - _SHIFT) - 1)) + 1
    place = number & 1
    load = functools.partial(global_memory.load, gpu, part, layout)
    own = load()

    @pl.when(block == 0)
    def _() -> None:
        first = (place * devices + me) * words.shape[2]
        for step in range(1, devices):
            _send(gpu, layout)(own, peers[step, 4], peers[step, 5], first, number)

    receive = _receive(gpu, layout, own)
    if devices == 2:  # in either order the same
        theirs = receive(words, place, 1 - me, number, me)
        return (own.astype(jnp.float32) + theirs.astype(jnp.float32)).astype(own.dtype)

    def add(sender: Array, total: Array) -> Array:  # in the same order everywhere
        theirs = receive(words, place, sender, number, me)
        # own again from memory: threads have no register to spare
        return total + jnp.where(sender == me, load(), theirs).astype(jnp.float32)

    zeros = gpu.layout_cast(jnp.zeros(own.shape, jnp.float32), layout)
    return lax.fori_loop(0, devices, add, zeros).astype(own.dtype)


def leave(gpu: Any, mailbox: Mailbox, block: Array, blocks: int) -> None:
    """Counts a thread block that has the sum, of so many: with all of them, one call more."""
    share = jnp.where(block == 0, 2**_SHIFT - (blocks - 1), 1)
    _add(gpu)(mailbox.calls, share)


def _send(gpu: Any, layout: Any) -> Any:
    """(row, lower, upper, first, number) writes to words from the first on at an address."""
    from jax.experimental.mosaic.gpu import utils

    @gpu.inline_mgpu(arg_types=(layout, *(gpu.Layout.WG_SPLAT,) * 4))
    def send(_: Any, row: Any, lower: Any, upper: Any, first: Any, number: Any) -> None:
        start, number = pointer(lower, upper, first, WORD), number.registers.item()
        own = [word for register in row.registers.flat for word in words_of(register)]
        for step, pair in enumerate(zip(own[::2], own[1::2], strict=True)):
            utils.inline_ptx(
                "st.volatile.global.v4.b32 [$0], {$1, $3, $2, $3};",
                piece(start, step, _BYTES),
                *pair,
                number,
                has_side_effects=True,
            )

    return send


def _receive(gpu: Any, layout: Any, like: Array) -> Any:
    """(words, place, sender, number, me) -> the row, once all of it is there; anything of `me`."""
    from jax.experimental.mosaic import gpu as mosaic
    from jax.experimental.mosaic.gpu import utils
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith, scf, vector

    splat, row = gpu.Layout.WG_SPLAT, gpu.ShapeDtypeStruct(like.shape, like.dtype, layout=layout)
    count = like.size * like.dtype.itemsize // (WORD * THREADS)

    @gpu.inline_mgpu(arg_types=(gpu.RefType(), *(splat,) * 4), return_type=row)
    def receive(_: Any, words: Any, place: Any, sender: Any, number: Any, me: Any) -> Any:
        i32, index = ir.IntegerType.get_signless(32), ir.IndexType.get()
        place, sender, number, me = (x.registers.item() for x in (place, sender, number, me))
        at = tuple(arith.index_cast(index, x) for x in (place, sender))
        start = utils.memref_ptr(utils.memref_slice(words, at))
        loop = scf.WhileOp([i32] * count, [])
        with ir.InsertionPoint.at_block_begin(loop.before.blocks.append()):
            found, missing = _looked_at(start, number, count)
            other = arith.cmpi(arith.CmpIPredicate.ne, sender, me)
            scf.condition(arith.andi(missing, other), found)
        with ir.InsertionPoint.at_block_begin(loop.after.blocks.append(*[i32] * count)):
            scf.yield_([])
        to = layout.to_mgpu()
        registers = np.empty(to.registers_shape(like.shape), object)
        kind = to.registers_element_type(utils.dtype_to_ir_type(like.dtype))
        each = count // registers.size
        for n in range(registers.size):
            mine = list(loop.results)[n * each : (n + 1) * each]
            packed = vector.from_elements(ir.VectorType.get((each,), i32), mine)
            registers[n] = vector.bitcast(kind, packed)
        return mosaic.FragmentedArray(_registers=registers, _layout=to, _is_signed=None)

    return receive


def _looked_at(start: Any, number: Any, count: int) -> tuple[list[Any], Any]:
    """The words of a thread, and whether the number is missing beside some of them."""
    from jax.experimental.mosaic.gpu import utils
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith

    i1, i32 = (ir.IntegerType.get_signless(n) for n in (1, 32))
    found: list[Any] = []
    missing = arith.constant(i1, False)
    for step in range(count // _PAIRS):
        first, one, second, two = utils.inline_ptx(
            "ld.volatile.global.v4.b32 {$0, $1, $2, $3}, [$4];",
            piece(start, step, _BYTES),
            result_types=[i32] * 4,
            has_side_effects=True,
        )
        found += [first, second]
        for seen in (one, two):
            differs = arith.cmpi(arith.CmpIPredicate.ne, seen, number)
            missing = arith.ori(missing, differs)
    return found, missing


def _add(gpu: Any) -> Any:
    """(calls, share) adds to the count, and does not wait for it."""
    from jax.experimental.mosaic.gpu import utils

    @gpu.inline_mgpu(arg_types=(gpu.RefType(), gpu.Layout.WG_SPLAT))
    def add(_: Any, calls: Any, share: Any) -> None:
        utils.inline_ptx(
            "red.relaxed.gpu.global.add.u32 [$0], $1;",
            utils.memref_ptr(calls),
            share.registers.item(),
            predicate=utils.single_thread_predicate(utils.ThreadSubset.WARPGROUP),
            has_side_effects=True,
        )

    return add
