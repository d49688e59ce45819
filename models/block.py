"""The seam of what surrounds attention in a block: kernels where they pay, XLA everywhere else."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..pallas_kernels import block_reference, peer_gather, peer_sum
from ..pallas_kernels.block_reference import Update
from ..pallas_kernels.peer_memory import Mailbox
from . import hopper, shards
from .layers import ACTIVATIONS, Embedding, Linear, RMSNorm, matmul
from .low_rank import LowRank

_GATES = {
    "silu": "silu",
    "swish": "silu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Activations of `config.json` that the kernels know, by the kernels' names."""
_NORM_ROWS = 512
"""Up to here a kernel norms faster than XLA."""
_PRODUCT_ROWS = range(33, 65)
"""Here a kernel multiplies faster than XLA's."""


class Sum(NamedTuple):
    """A product, and what adapters and other devices still have to add to it."""

    y: Float[Array, "T ..."]
    update: Update | None = None
    mailbox: Mailbox | None = None
    """Through which the devices' y are to be added up; None where y is whole."""


Stream = tuple[Float[Array, "T E"], Sum]
"""The residual stream: a sum and what is still to be added to it, which the next norm does."""


def project(
    x: Float[Array, "*T E"],
    w: Float[Array, "... E"],
    lora: LowRank | None,
    adapters: Int[Array, " T"] | None,
    *,
    defer: bool = False,
) -> Sum:
    """The product of x and a weight [out..., E], [T, out...], with that of its adapters.

    Args:
        adapters: as in `TokenBatch`.
        defer: what adapters add may be left to whoever takes the sum, where that is faster.
    """
    flat = w.reshape(-1, w.shape[-1])
    if lora is not None and adapters is not None and defer and _defers(x, w):
        from ..pallas_kernels import hopper_matmul  # slow to import

        a = lora.a[...].reshape(-1, w.shape[-1])
        if hopper_matmul.joint_fits(x.shape[0], flat.shape[0], a.shape[0], w.shape[-1], x.dtype):
            y, h = hopper_matmul.joint_matmul(x, flat, a)
        else:
            y, h = matmul(x, flat), matmul(x, a)
        update = Update(h.reshape(-1, *lora.a.shape[:-1]), lora.b[...], adapters)
        return Sum(y.reshape(-1, *w.shape[:-1]), update)
    y = _product(x, flat).reshape(*x.shape[:-1], *w.shape[:-1])
    return Sum(y if lora is None else y + lora(x, adapters))


def linear(
    layer: Linear,
    x: Float[Array, "*T I"],
    adapters: Int[Array, " T"] | None,
    *,
    defer: bool = False,
    mailbox: Mailbox | None = None,
) -> Sum:
    """layer(x), that of its adapters included; arguments as for `project`.

    Args:
        mailbox: what devices have of it may be left to whoever takes the sum, to be added up there.
    """
    cut = layer.has_some_inputs
    # what adapters add on each device is added up with its products, which takes no sum of its own
    y, update, _ = project(x, layer.weight[...], layer.lora, adapters, defer=defer and not cut)
    if cut and layer.bias is None and _takes(mailbox, y):
        return Sum(y, mailbox=mailbox)
    y = layer.whole(y)
    return Sum(y if layer.bias is None else y + layer.bias[...][None], update)


def embedded(
    table: Embedding,
    lora: LowRank | None,
    index: Int[Array, " T"],
    adapters: Int[Array, " T"] | None,
    *,
    mailbox: Mailbox | None = None,
) -> Sum:
    """Vectors of the table at `index`, `lora` added; `mailbox` as for `linear`."""
    rows = table.own(index, None if lora is None else lora.lookup(index, adapters))
    if not table.is_part:
        return Sum(rows)
    if _takes(mailbox, rows):
        return Sum(rows, mailbox=mailbox)
    return Sum(shards.summed(rows))


def _takes(mailbox: Mailbox | None, y: Float[Array, "T E"]) -> bool:
    """Whether there is one, with room for y."""
    if mailbox is None:
        return False
    return y.dtype == mailbox.inbox.dtype and len(y) <= mailbox.inbox.shape[2]


def vocabulary(
    table: Embedding,
    lora: LowRank | None,
    hidden: Float[Array, "*N E"],
    adapters: Int[Array, "*N"] | None,
    *,
    mailbox: Mailbox | None = None,
) -> Float[Array, "*N V"]:
    """float32 products of hidden states with every vector of the table, `lora` added.

    Args:
        mailbox: through which devices may gather what each has of them.
    """
    y = table.logits(hidden, None if lora is None else lora(hidden, adapters, jnp.float32))
    if not table.is_part:
        return y
    if mailbox is not None and peer_gather.fits(*y.shape, mailbox):
        return peer_gather.gathered(y, mailbox)
    return shards.gathered(y)


def add_norm(
    norm: RMSNorm, x: Float[Array, "T E"], total: Sum
) -> tuple[Float[Array, "T E"], Float[Array, "T E"]]:
    """x + total, and its norm."""
    y, update, mailbox = total
    if mailbox is not None:
        return peer_sum.add_rms_norm(x, y, norm.weight[...], mailbox, norm.eps)
    if x.shape[0] <= _NORM_ROWS and x.dtype == y.dtype and _on_hopper(x):
        from ..pallas_kernels import row_norm  # slow to import

        if row_norm.fits(x.shape[1], x.dtype):
            weight, eps = norm.weight[...], norm.eps
            if update is not None:
                return row_norm.add_rms_norm(x, y, weight, eps, update)
            run = hopper.with_gradient(row_norm.add_rms_norm, block_reference.add_rms_norm, eps=eps)
            return run(x, y, weight)
    if update is not None:
        y = y + block_reference.expand(update).astype(y.dtype)
    x = x + y
    return x, norm(x)


def norm_project(
    norm: RMSNorm,
    stream: Stream,
    w: Float[Array, "... E"],
    lora: LowRank | None,
    adapters: Int[Array, " T"] | None,
    *,
    defer: bool = False,
) -> tuple[Float[Array, "T E"], Sum]:
    """The stream added up, and `project` of its norm."""
    if lora is None and _norms_in_product(stream, w.reshape(1, -1, w.shape[-1])):
        from ..pallas_kernels import row_matmul  # slow to import

        kernels = row_matmul.norm_matmul, block_reference.norm_matmul
        x, y = _norm_product(*kernels, norm, stream, w.reshape(-1, w.shape[-1]))
        return x, Sum(y.reshape(-1, *w.shape[:-1]))
    x, normed = add_norm(norm, *stream)
    return x, project(normed, w, lora, adapters, defer=defer)


def norm_gated_matmul(
    norm: RMSNorm,
    stream: Stream,
    w: Float[Array, "2 F E"],
    bias: Float[Array, "2 F"] | None,
    activation: str,
    lora: LowRank | None = None,
    adapters: Int[Array, " T"] | None = None,
) -> tuple[Float[Array, "T E"], Float[Array, "T F"]]:
    """The stream added up, and `gated_matmul` of its norm."""
    known = lora is None and bias is None and activation in _GATES
    if known and _norms_in_product(stream, w):
        from ..pallas_kernels import row_matmul  # slow to import

        kernels = row_matmul.norm_gated_matmul, block_reference.norm_gated_matmul
        return _norm_product(*kernels, norm, stream, w, activation=_GATES[activation])
    x, normed = add_norm(norm, *stream)
    return x, gated_matmul(normed, w, bias, activation, lora, adapters)


def _norms_in_product(stream: Stream, w: Float[Array, "N O E"]) -> bool:
    """Whether the kernel of a product with w takes the norm of the stream over."""
    x, (y, update, _) = stream
    if len(x) != 1 or update is not None or not x.dtype == y.dtype == w.dtype or not _on_hopper(x):
        return False
    from ..pallas_kernels import row_matmul  # slow to import

    return row_matmul.plan(*w.shape, x.dtype) is not None


def _norm_product(
    kernel: Callable[..., Any],
    twin: Callable[..., Any],
    norm: RMSNorm,
    stream: Stream,
    w: Array,
    **options: object,
) -> tuple[Float[Array, "1 E"], Array]:
    """What a kernel makes of stream and weight; `twin` is what its gradient is that of."""
    x, (y, _, mailbox) = stream
    if mailbox is not None:
        return kernel(x, y, norm.weight[...], w, mailbox, eps=norm.eps, **options)
    run = hopper.with_gradient(kernel, twin, eps=norm.eps, **options)
    return run(x, y, norm.weight[...], w)


def gated_matmul(
    x: Float[Array, "T E"],
    w: Float[Array, "2 F E"],
    bias: Float[Array, "2 F"] | None,
    activation: str,
    lora: LowRank | None = None,
    adapters: Int[Array, " T"] | None = None,
) -> Float[Array, "T F"]:
    """activation(x @ w[0].T + bias[0]) * (x @ w[1].T + bias[1]), `lora` added to both products."""
    if bias is None and activation in _GATES and x.dtype == w.dtype and _on_hopper(x):
        from ..pallas_kernels import hopper_matmul, row_matmul  # slow to import

        if lora is None and len(x) == 1 and row_matmul.plan(*w.shape, x.dtype) is not None:
            kernel, twin = row_matmul.gated_matmul, block_reference.gated_matmul
            return hopper.with_gradient(kernel, twin, activation=_GATES[activation])(x, w)
        low = 0 if lora is None else math.prod(lora.a.shape[:-1])
        if hopper_matmul.fits(x.shape[0], w.shape[1], w.shape[2], x.dtype, low=low):
            kernel, twin = hopper_matmul.gated_matmul, block_reference.gated_matmul
            run = hopper.with_gradient(kernel, twin, activation=_GATES[activation])
            if lora is None:
                return run(x, w)
            h = lora.down_own(x, adapters)
            return run(x, w, h.reshape(-1, low), lora.b[...].reshape(2, -1, low))
    y = project(x, w, lora, adapters).y
    if bias is not None:
        y = y + bias[None]
    return ACTIVATIONS[activation](y[:, 0]) * y[:, 1]


def _product(x: Float[Array, "*T E"], w: Float[Array, "O E"]) -> Float[Array, "*T O"]:
    """x @ w.T, as `layers.matmul`."""
    if x.dtype == w.dtype and _on_hopper(x):
        from ..pallas_kernels import hopper_matmul, row_matmul  # slow to import

        if len(x) == 1 and row_matmul.plan(1, *w.shape, x.dtype) is not None:
            return hopper.with_gradient(row_matmul.matmul, block_reference.matmul)(x, w)
        few = len(x) in _PRODUCT_ROWS
        if few and hopper_matmul.joint_fits(len(x), len(w), 0, w.shape[1], x.dtype):
            return hopper.with_gradient(hopper_matmul.matmul, block_reference.matmul)(x, w)
    return matmul(x, w)


def _defers(x: Float[Array, "T E"], w: Array) -> bool:
    """Whether the kernels that take sums add updates of so many rows."""
    return x.shape[0] <= _NORM_ROWS and x.dtype == w.dtype and _on_hopper(x)


def _on_hopper(x: Array) -> bool:
    return x.ndim == 2 and hopper.why_not(jax.default_backend(), str(x.dtype)) is None
