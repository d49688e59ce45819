"""The kernels compile for an H200 where there is none: that needs no more than jax's CUDA plugin.

What they compute is tested elsewhere. This tells what a new jax refuses.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P, SingleDeviceSharding
from tests.pallas_kernels.peers import SPECS, over

from quire.pallas_kernels import block_reference, peer_gather, peer_memory, peer_sum
from quire.pallas_kernels.peer_memory import Mailbox

BFLOAT16, INT32, FLOAT32 = jnp.dtype("bfloat16"), jnp.dtype("int32"), jnp.dtype("float32")
TARGET = Path(__file__).parents[1] / "fixtures" / "h200.txtpb"

pytestmark = pytest.mark.skipif(
    jax.__version_info__ < (0, 11, 2), reason="Mosaic kernels need jax 0.11.2"
)


@functools.cache
def gpus(count: int) -> Any:
    """H200s to compile for. Skips the test where jax cannot."""
    topology = {"topology": f"1x1x{count}", "target_config": TARGET.read_text()}
    try:
        return topologies.get_topology_desc(platform="cuda", **topology).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        pytest.skip(f"compiling for a GPU needs jax[cuda13] or jax[cuda12]: {error}")


def compiles(kernel: Any, *shapes: Any, **options: Any) -> None:
    """Shapes are of bfloat16, or (shape, type), or a tree of arrays without data."""
    place = SingleDeviceSharding(gpus(1)[0])

    def argument(shape: Any) -> Any:
        if not isinstance(shape, tuple) or hasattr(shape, "_fields"):
            return jax.tree.map(lambda x: argument((x.shape, x.dtype)), shape)
        shape, dtype = (shape, BFLOAT16) if isinstance(shape[0], int) else shape
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    run = jax.jit(functools.partial(kernel, **options))
    assert run.lower(*map(argument, shapes)).compile() is not None


@pytest.mark.parametrize(
    ("out", "width"), [(6144, 4096), (4096, 14336), (1001, 2048), (3584, 3584)]
)
def test_products_of_one_row(out: int, width: int) -> None:
    from quire.pallas_kernels import row_matmul

    stream = (1, width), (1, width), (width,)
    compiles(row_matmul.matmul, (1, width), (out, width))
    compiles(row_matmul.norm_matmul, *stream, (out, width), eps=1e-5)
    if row_matmul.plan(2, out, width, BFLOAT16) is not None:
        gated: dict[str, Any] = {"activation": "silu"}
        compiles(row_matmul.gated_matmul, (1, width), (2, out, width), **gated)
        compiles(row_matmul.norm_gated_matmul, *stream, (2, out, width), eps=1e-5, **gated)


@pytest.mark.parametrize("tokens", [16, 96, 192, 2048])
def test_gated_products(tokens: int) -> None:
    from quire.pallas_kernels import hopper_matmul

    gated = functools.partial(hopper_matmul.gated_matmul, activation="gelu_tanh")
    compiles(gated, (tokens, 4096), (2, 14336, 4096))
    compiles(gated, (tokens, 4096), (2, 14336, 4096), (tokens, 64), (2, 14336, 64))


def test_products_of_few_rows() -> None:
    from quire.pallas_kernels import hopper_matmul

    compiles(hopper_matmul.matmul, (64, 4096), (6144, 4096))
    compiles(hopper_matmul.joint_matmul, (24, 4096), (6144, 4096), (64, 4096))


@pytest.mark.parametrize(("rows", "width"), [(1, 4096), (64, 8192), (3, 768), (512, 256)])
def test_norms(rows: int, width: int) -> None:
    from quire.pallas_kernels import row_norm

    norm = functools.partial(row_norm.add_rms_norm, eps=1e-5)
    compiles(norm, (rows, width), (rows, width), (width,))


@pytest.mark.parametrize(("width", "rank"), [(4096, 16), (3584, 32), (768, 6)])
def test_norms_of_updates(width: int, rank: int) -> None:
    from quire.pallas_kernels import row_norm

    def norm(x: Any, y: Any, weight: Any, h: Any, b: Any, slots: Any) -> Any:
        return row_norm.add_rms_norm(x, y, weight, 1e-5, block_reference.Update(h, b, slots))

    update = (64, 1, 4, rank), (4, rank, width), ((64,), INT32)
    compiles(norm, (64, width), (64, width), (width,), *update)


@pytest.mark.parametrize("tokens", [1, 64, 512])
@pytest.mark.parametrize(
    ("heads", "groups", "width", "turned"), [(8, 4, 128, 128), (4, 7, 128, 128), (2, 1, 64, 32)]
)
def test_rotation_and_writing(
    tokens: int, heads: int, groups: int, width: int, turned: int
) -> None:
    from quire.pallas_kernels import kv_write, rope_write

    pools = [(100, 64, heads, width)] * 2
    factors = [((tokens, turned // 2), FLOAT32)] * 2
    index = (tokens,), INT32
    compiles(rope_write.rope_write, *pools, (tokens, heads, groups + 2, width), *factors, index)
    compiles(kv_write.kv_write, *pools, *[(tokens, heads, width)] * 2, index)


def test_rotation_of_updates() -> None:
    from quire.pallas_kernels import rope_write

    def run(k: Any, v: Any, qkv: Any, cos: Any, sin: Any, index: Any, *update: Any) -> Any:
        update = block_reference.Update(*update)
        return rope_write.rope_write(k, v, qkv, cos, sin, index, update)

    step = (64, 8, 6, 128), ((64, 64), FLOAT32), ((64, 64), FLOAT32), ((64,), INT32)
    update = (64, 3, 4, 16), (4, 16, 8, 6, 128), ((64,), INT32)
    compiles(run, *[(100, 64, 8, 128)] * 2, *step, *update)


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize(
    ("heads", "groups", "width"),
    [(8, 4, 128), (4, 7, 128), (8, 1, 64), (32, 1, 96), (2, 16, 128), (4, 2, 256)],
)
def test_decode(rows: int, heads: int, groups: int, width: int) -> None:
    from quire.pallas_kernels import hopper_decode

    pools = [(100, 64, heads, width)] * 2
    rest = ((rows, 20), INT32), ((rows,), INT32)
    options = {"scale": 0.1, "soft_cap": 30.0 if width == 256 else None}
    compiles(hopper_decode.paged_decode, (rows, heads * groups, width), *pools, *rest, **options)


@pytest.mark.parametrize(
    ("heads", "groups", "width"), [(8, 4, 128), (4, 7, 128), (8, 1, 64), (32, 1, 96), (4, 2, 256)]
)
def test_prefill(heads: int, groups: int, width: int) -> None:
    from quire.pallas_kernels import hopper_prefill

    pools = [(100, 64, heads, width)] * 2
    rest = ((16, 20), INT32), ((16,), INT32), ((17,), INT32)
    options = {"scale": 0.1, "window": 100 if width == 64 else None}
    compiles(hopper_prefill.paged_prefill, (512, heads * groups, width), *pools, *rest, **options)


@pytest.mark.parametrize("width", [64, 96, 128])
def test_attention_in_towers(width: int) -> None:
    from quire.pallas_kernels import hopper_ranges

    packed, batched = [(1024, 16, width)] * 3, [(4, 256, 16, width)] * 3
    compiles(hopper_ranges.segment_attention, *packed, ((1024,), INT32), scale=0.1)
    compiles(hopper_ranges.batch_attention, *batched, ((4,), INT32), scale=0.1)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("width", [4096, 1536])
def test_what_gpus_tell_each_other(count: int, width: int) -> None:
    from quire.pallas_kernels import row_matmul

    mesh = Mesh(np.array(gpus(count)), ("tensor",))

    def placed(shape: tuple[int, ...], dtype: Any, spec: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def step(x: Any, weight: Any, logits: Any, mailbox: Mailbox) -> Any:
        peers = peer_memory.connected(mailbox, "tensor")
        mailbox = mailbox._replace(peers=peers)
        total, normed = peer_sum.add_rms_norm(x, x, weight, mailbox, 1e-5)
        one, w = total[:1], jnp.ones((256, width), BFLOAT16)
        product = row_matmul.norm_matmul(one, one, weight, w, mailbox, eps=1e-5)
        return normed, product, peer_gather.gathered(logits, mailbox)

    def empty() -> Mailbox:
        return peer_memory.empty(count, width, BFLOAT16)

    shapes = jax.eval_shape(over(mesh, empty, (), SPECS))
    mailbox = jax.tree.map(lambda x, spec: placed(x.shape, x.dtype, spec), shapes, SPECS)
    assert peer_gather.fits(3, 4096, jax.eval_shape(empty))
    run = over(mesh, step, (P(), P(), P(None, "tensor"), SPECS), P())
    x, weight = placed((8, width), BFLOAT16, P()), placed((width,), BFLOAT16, P())
    logits = placed((3, 4096 * count), FLOAT32, P(None, "tensor"))
    text = run.lower(x, weight, logits, mailbox).compile().as_text() or ""
    assert all(name in text for name in ("peer_add_rms_norm", "row_norm_matmul", "peer_gather"))
