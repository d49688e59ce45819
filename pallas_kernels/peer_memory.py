"""What several Hopper GPUs tell each other within a kernel, by writing into each other's memory.

Each GPU writes a part of something into the memory of all others and tells them so, and then has
what has come to its own: in one shot, which for little takes about as long as the way there.
XLA's own collectives stay outside of CUDA graphs, and the host launches all that is around them
one by one.

A `Mailbox` is memory that stays where it is as long as an engine lives. Programs take it as they
take weights; XLA knows nothing of what is written there.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

THREADS, WORD = 128, 4
_MOST_ROWS, _MOST_BYTES = 512, 2**23
"""What a GPU sends to all others. Beyond that the way takes longer than what is gained here."""


class Mailbox(NamedTuple):
    """One GPU's, among N, with M slots for a part each.

    What goes through a slot is numbered. Parts go to the two places of the slot in turn: who sends
    the next but one has had the next one's from all, so all are done with this one's.
    """

    inbox: Float[Array, "2 N M E"]
    """By place and sender."""
    flags: Int[Array, "2*N+1 M"]
    """The number of what is in the inbox, by place and sender; in the last row that of the last
    call."""
    words: Int[Array, "2 N W"]
    """What `peer_row` sends, by place and sender."""
    calls: Int[Array, " 1"]
    """Those of `peer_row` so far, as it counts them."""
    peers: Int[Array, "N 6"]
    """Which of them this GPU is; then where inbox, flags and words of the next ones are, in halves
    of 32 bits, the lower one first."""


def rows_of(devices: int, width: int, dtype: DTypeLike) -> int:
    """Rows of `width` elements that a mailbox among so many GPUs has room for."""
    sent = (devices - 1) * width * jnp.dtype(dtype).itemsize
    return min(_MOST_ROWS, _MOST_BYTES // sent)


def empty(devices: int, width: int, dtype: DTypeLike) -> Mailbox:
    """That of one GPU, which `connected` is still to tell where the others are."""
    rows = rows_of(devices, width, dtype)
    return Mailbox(
        inbox=jnp.zeros((2, devices, rows, width), dtype),
        flags=jnp.zeros((2 * devices + 1, rows), jnp.int32),
        words=jnp.zeros((2, devices, 2 * width * jnp.dtype(dtype).itemsize // WORD), jnp.int32),
        calls=jnp.zeros(1, jnp.int32),
        peers=jnp.zeros((devices, 6), jnp.int32),
    )


def connected(mailbox: Mailbox, axis: str) -> Int[Array, "N 6"]:
    """`peers` of a mailbox. To be run once over the mesh axis, with the mailbox in its place."""
    from jax.experimental.pallas import mosaic_gpu as plgpu  # slow to import, and new in jax 0.11

    devices = mailbox.inbox.shape[1]

    def body(box: Mailbox, peers: jax.Ref) -> None:
        me = jax.lax.axis_index(axis)
        for column in range(6):
            peers[0, column] = me
        for step in range(1, devices):
            for place, ref in enumerate((box.inbox, box.flags, box.words)):
                theirs = plgpu.remote_ref(ref, {axis: _after(me, step, devices)})
                halves = _address(plgpu)(theirs)
                for half in range(2):
                    peers[step, 2 * place + half] = halves[half]

    run = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(mailbox.peers.shape, jnp.int32),
        compiler_params=lanes(plgpu),
        kernel_name="connect_peers",
    )
    return run(mailbox)


def _after(me: Array, step: int, devices: int) -> Array:
    """The GPU so many behind this one."""
    return jax.lax.rem(me + step, jnp.int32(devices))


def swapped(gpu: Any, mailbox: Mailbox, slot: Array, part: Array, layout: Any) -> Array:
    """Sends a part to all others, in a kernel, and waits for theirs; which place they are at.

    Args:
        gpu: the module of Mosaic.
        mailbox: references in place of its arrays.
        part: as many bytes as a slot has, in `layout`, which has them in words.
    """
    inbox, flags, peers = mailbox.inbox, mailbox.flags, mailbox.peers
    _, devices, slots, _ = inbox.shape
    me = peers[0, 0]
    number = flags[2 * devices, slot] + 1
    place = (number & 1) * devices
    at = (place + me) * slots + slot
    for step in range(1, devices):
        _put(gpu, layout)(part, peers[step, 0], peers[step, 1], at * part.size)
    for step in range(1, devices):
        _tell(gpu)(peers[step, 2], peers[step, 3], at, number)
    for step in range(1, devices):
        _wait(gpu)(flags, place + _after(me, step, devices), slot, number)
    flags[2 * devices, slot] = number
    return number & 1


def row_layout(gpu: Any, width: int, itemsize: int) -> Any:
    """Of a row in a warpgroup: 16 bytes an instruction, or as many as leave no thread idle."""
    most = 16 // itemsize
    vector = max(n for n in range(1, most + 1) if width % (THREADS * n) == 0 and most % n == 0)
    return gpu.Layout.WG_STRIDED((width,), vec_size=vector)


def lanes(gpu: Any, **options: Any) -> Any:
    from jax.experimental.mosaic import gpu as mosaic

    return gpu.CompilerParams(lowering_semantics=mosaic.LoweringSemantics.Lane, **options)


def _address(gpu: Any) -> Any:
    """(ref) -> the lower and the upper half of its address."""
    from jax.experimental.mosaic.gpu import utils
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith, llvm

    half = gpu.ShapeDtypeStruct((), jnp.int32, layout=gpu.Layout.WG_SPLAT)

    @gpu.inline_mgpu(arg_types=(gpu.RefType(),), return_type=(half, half))
    def address(_: Any, ref: Any) -> Any:
        i32, i64 = (ir.IntegerType.get_signless(n) for n in (32, 64))
        whole = llvm.ptrtoint(i64, utils.memref_ptr(ref))
        upper = arith.shrui(whole, utils.c(32, i64))
        return tuple(_splat(arith.trunci(i32, part)) for part in (whole, upper))

    return address


def _put(gpu: Any, layout: Any) -> Any:
    """(row, lower, upper, first) writes a row [E] to elements from the first on at an address."""
    from jax.experimental.mosaic.gpu import utils

    @gpu.inline_mgpu(arg_types=(layout, *(gpu.Layout.WG_SPLAT,) * 3))
    def put(_: Any, row: Any, lower: Any, upper: Any, first: Any) -> None:
        start = pointer(lower, upper, first, utils.bytewidth(row.mlir_dtype))
        for step, register in enumerate(row.registers.flat):
            parts = words_of(register)
            words = len(parts)
            there = piece(start, step, words * WORD)
            kind = f".v{words}" if words > 1 else ""
            named = ", ".join(f"${n + 1}" for n in range(words))
            named = f"{{{named}}}" if words > 1 else named
            # an ordinary store would move one element at a time, since nothing tells its alignment
            utils.inline_ptx(
                f"st.global{kind}.b32 [$0], {named};", there, *parts, has_side_effects=True
            )

    return put


def _tell(gpu: Any) -> Any:
    """(lower, upper, index, number) sets a flag at an address, after all that was written."""
    from jax.experimental.mosaic.gpu import utils

    @gpu.inline_mgpu(arg_types=(gpu.Layout.WG_SPLAT,) * 4)
    def tell(_: Any, lower: Any, upper: Any, index: Any, number: Any) -> None:
        utils.warpgroup_barrier()
        utils.inline_ptx(
            "st.release.sys.global.u32 [$0], $1;",
            pointer(lower, upper, index, WORD),
            number.registers.item(),
            predicate=utils.single_thread_predicate(utils.ThreadSubset.WARPGROUP),
            has_side_effects=True,
        )

    return tell


def _wait(gpu: Any) -> Any:
    """(flags, row, column, number) waits until a flag is the number, and what it tells is there."""
    from jax.experimental.mosaic.gpu import utils
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith, scf

    @gpu.inline_mgpu(arg_types=(gpu.RefType(), *(gpu.Layout.WG_SPLAT,) * 3))
    def wait(_: Any, flags: Any, row: Any, column: Any, number: Any) -> None:
        i32, index = ir.IntegerType.get_signless(32), ir.IndexType.get()
        at = tuple(arith.index_cast(index, x.registers.item()) for x in (row, column))
        flag = utils.memref_ptr(utils.memref_slice(flags, at))
        loop = scf.WhileOp([], [])
        with ir.InsertionPoint.at_block_begin(loop.before.blocks.append()):
            seen = utils.inline_ptx(
                "ld.acquire.sys.global.u32 $0, [$1];",
                flag,
                result_types=i32,
                has_side_effects=True,
            )
            other = arith.cmpi(arith.CmpIPredicate.ne, seen, number.registers.item())
            scf.condition(other, [])
        with ir.InsertionPoint.at_block_begin(loop.after.blocks.append()):
            scf.yield_([])

    return wait


def pointer(lower: Any, upper: Any, index: Any, size: int) -> Any:
    """To an element of so many bytes of what is at an address."""
    from jax.experimental.mosaic.gpu import utils
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith, llvm

    i64 = ir.IntegerType.get_signless(64)
    low, high, place = (arith.extui(i64, x.registers.item()) for x in (lower, upper, index))
    base = arith.ori(low, arith.shli(high, utils.c(32, i64)))
    offset = arith.muli(place, utils.c(size, i64))
    return llvm.inttoptr(llvm.PointerType.get(), arith.addi(base, offset))


def piece(start: Any, step: int, size: int) -> Any:
    """Where this thread's piece of so many bytes of a step begins: those of a warp lie together."""
    from jax.experimental.mosaic.gpu import utils
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith, llvm

    i32, i64 = (ir.IntegerType.get_signless(n) for n in (32, 64))
    thread = arith.remui(utils.thread_idx(), utils.c(THREADS, i32))
    number = arith.addi(thread, utils.c(step * THREADS, i32))
    offset = arith.extui(i64, arith.muli(number, utils.c(size, i32)))
    return llvm.inttoptr(llvm.PointerType.get(), arith.addi(llvm.ptrtoint(i64, start), offset))


def words_of(register: Any) -> list[Any]:
    """The words of a vector."""
    from jax.experimental.mosaic.gpu import utils
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import vector

    kind = ir.VectorType(register.type)
    count = kind.shape[0] * utils.bytewidth(kind.element_type) // WORD
    packed = vector.bitcast(ir.VectorType.get((count,), ir.IntegerType.get_signless(32)), register)
    return [vector.extract(packed, [], [n]) for n in range(count)]


def _splat(value: Any) -> Any:
    from jax.experimental.mosaic import gpu as mosaic

    return mosaic.FragmentedArray.splat(value, (), is_signed=True)
