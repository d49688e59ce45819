"""How many KV pages fit."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax

from ..errors import MemoryBudgetError
from ..models import hopper
from ..pallas_kernels.decode_splits import MOST_SPLITS
from .device_state import RunnerConfig, new_tables
from .mailbox import mailbox_bytes
from .options import EngineOptions

if TYPE_CHECKING:
    from .model import ModelSpec

log = logging.getLogger("quire")

CPU_CACHE_BYTES = 256 * 2**20
"""Default size of the pool on a CPU."""

_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_JAX_DEFAULT = 0.75
_SCRATCH_SHARE = 0.04
"""Share of a GPU beyond `gpu_memory_utilization` that JAX may take while it compiles."""
_TOWER_VALUES, _TOWER_VALUES_OF_KERNELS = 12, 4
"""Numbers for each patch and unit of width that a run of a tower has room for."""
_BLAS_WORKSPACE = 36 * 2**20
"""Bytes that XLA may set aside in a program for cuBLAS."""


def reserve_gpu_memory(utilization: float) -> None:
    """Lets JAX take `utilization` of a GPU and some scratch, if it has not started yet.

    JAX takes 75 % by default, at its first use. A value set in the environment stays. The scratch
    is for XLA, which times matrix products on copies of their operands while it compiles.
    """
    from jax._src import xla_bridge  # no public name tells whether backends have started

    if not xla_bridge.backends_are_initialized():
        os.environ.setdefault(_FRACTION, f"{min(utilization + _SCRATCH_SHARE, 0.98):.3f}")


def plan_pages(spec: "ModelSpec", config: RunnerConfig, options: EngineOptions) -> int:
    """The number of pages, the null page included, for the memory that `options` allow.

    `config.num_pages` is not read. Raises MemoryBudgetError, with the numbers, where the weights do
    not fit or the pool could not hold one sequence of `max_model_len` tokens.
    """
    needed = -(-spec.config.max_model_len // config.page_size) + 1
    useful = config.num_slots * (needed - 1) + 1
    page = page_bytes(spec, config)
    if options.kv_cache_memory_bytes is not None:
        budget = options.kv_cache_memory_bytes
    elif jax.default_backend() == "cpu":
        _check_host_memory(spec)
        budget = CPU_CACHE_BYTES
    else:
        budget = _gpu_budget(spec, config, options)
    pages = min(_round_down(budget // page), useful)
    if pages < needed:
        raise MemoryBudgetError(
            f"{budget / 2**20:,.0f} MiB hold {max(pages, 0):,} KV pages of {page:,} bytes, but one "
            f"sequence of max_model_len={spec.config.max_model_len} needs {needed:,} "
            f"({needed * page / 2**20:,.0f} MiB). Lower max_model_len, or raise "
            "kv_cache_memory_bytes or gpu_memory_utilization."
        )
    log.info(
        "KV pool: %d pages of %d tokens, %.2f GiB", pages, config.page_size, pages * page / 2**30
    )
    return pages


def page_bytes(spec: "ModelSpec", config: RunnerConfig) -> int:
    """Bytes of one page over all layers, K and V, on one device."""
    model = spec.config
    head = spec.cache_head_dim * spec.cache_dtype.itemsize
    heads = model.num_kv_heads // spec.devices
    return 2 * model.num_layers * heads * head * config.page_size


def _round_down(pages: int) -> int:
    """Keeps seven significant bits: jitter in free memory must not change compiled shapes."""
    unit = 1 << max(0, pages.bit_length() - 7)
    return pages // unit * unit


def _gpu_budget(spec: "ModelSpec", config: RunnerConfig, options: EngineOptions) -> int:
    stats = _least_free(spec.all_devices)
    free = _allowed_bytes(spec, options, stats) - stats.get("bytes_in_use", 0)
    tables = jax.eval_shape(lambda: new_tables(spec, config))
    fixed = spec.device_bytes + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tables))
    fixed += 0 if spec.adapters is None else spec.adapters.nbytes
    fixed += mailbox_bytes(spec) if config.mailbox else 0
    fixed += config.feature_rows * spec.config.hidden_size * spec.dtype.itemsize
    scratch = max(temporaries(spec, config), tower_temporaries(spec, config))
    budget = int(free - fixed - scratch)
    if budget <= 0:
        raise MemoryBudgetError(
            f"weights, adapters and tables take {fixed / 2**30:.2f} GiB and temporaries "
            f"{scratch / 2**30:.2f} GiB, but {free / 2**30:.2f} GiB are free. "
            f"Raise gpu_memory_utilization (now {options.gpu_memory_utilization}), lower "
            "max_num_batched_tokens, max_loras or max_lora_rank, or use a smaller model."
        )
    return budget


def _least_free(devices: Sequence[jax.Device]) -> dict[str, int]:
    """Memory of the device that has the least to spare: pools are equal on all."""
    own = [device for device in devices if device.process_index == jax.process_index()]
    stats = [device.memory_stats() or {} for device in own]
    return min(stats, key=lambda one: one.get("bytes_limit", 0) - one.get("bytes_in_use", 0))


def _allowed_bytes(spec: "ModelSpec", options: EngineOptions, stats: Mapping[str, int]) -> float:
    """What `gpu_memory_utilization` allows, or what JAX's allocator has, less its scratch."""
    limit = stats.get("bytes_limit", 0)
    wanted = options.gpu_memory_utilization * limit / float(os.environ.get(_FRACTION, _JAX_DEFAULT))
    largest = max(shape.size * shape.dtype.itemsize for shape in spec.shapes.values())
    allowed = min(wanted, limit - 1.25 * largest - 2**28)
    if allowed < 0.95 * wanted:
        log.warning(
            "JAX was set up before the engine and keeps %.1f GiB of the GPU (%s=%s), less than "
            "gpu_memory_utilization=%s. Unset that variable, or make the engine before using JAX.",
            limit / 2**30, _FRACTION, os.environ.get(_FRACTION), options.gpu_memory_utilization,
        )  # fmt: skip
    return allowed


def temporaries(spec: "ModelSpec", config: RunnerConfig) -> int:
    """Bytes that no program exceeds beside its arguments: an estimate, since compiling takes long.

    Activations of the widest layer, partial results of attention and logits follow each other, so
    the largest counts.
    """
    model, largest = spec.config, config.buckets.largest
    matrices = [s.shape for s in spec.text_shapes.values() if len(s.shape) > 1]
    widest = max(
        math.prod(shape) // shape[-1] for shape in matrices if model.vocab_size not in shape
    )
    heads = (model.num_heads + 2 * model.num_kv_heads) * spec.cache_head_dim
    values = largest.tokens * (3 * model.hidden_size + 3 * widest // 2 + heads)
    # gathered from several devices they lie otherwise than XLA samples from them
    logits = (3 if spec.devices == 1 else 5) * largest.rows * model.vocab_size
    partial = MOST_SPLITS * largest.rows * heads
    workspace = _BLAS_WORKSPACE if jax.default_backend() == "gpu" else 0
    return max(values * spec.dtype.itemsize, logits * 4, partial * 4) * 9 // 8 + workspace


def tower_temporaries(spec: "ModelSpec", config: RunnerConfig) -> int:
    """Bytes of the largest run of a tower beside its arguments: an estimate, as `temporaries`.

    What a patch takes goes with the width of the tower's MLP: programs compiled for LLaVA-1.5,
    Qwen2-VL-2B and Qwen2-Audio take 4.5 bytes for each unit of it, and up to 24 without kernels.
    """
    if spec.media is None:
        return 0
    towers = spec.shapes.keys() - spec.text_shapes.keys()
    widest = max(spec.shapes[path].shape[0] for path in towers if spec.shapes[path].ndim == 1)
    encoders = spec.media.encoders
    patches = max(encoders[one.kind].num_patches(one.units) for one in config.encodings)
    plain = hopper.why_not(jax.default_backend(), str(spec.dtype)) is not None
    values = _TOWER_VALUES if plain else _TOWER_VALUES_OF_KERNELS
    return patches * widest * values * spec.dtype.itemsize


def _check_host_memory(spec: "ModelSpec") -> None:
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":") for line in file)
    free = int(lines["MemAvailable"].split()[0]) * 1024
    needed = spec.weight_bytes * len(spec.meshes)
    if needed > free:
        raise MemoryBudgetError(
            f"the weights take {needed / 2**30:.2f} GiB as {spec.dtype}, but "
            f"{free / 2**30:.2f} GiB of memory are free. Use a smaller model, "
            "dtype='bfloat16', or a machine with more memory."
        )
