"""From a program's name to something XLA can compile: every shape of an engine in one place."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from ..models import functional
from ..models.shards import TENSOR
from . import sampler
from .buckets import (
    AUXILIARY_MASKS,
    AUXILIARY_PATCHES,
    AUXILIARY_TOKENS,
    Auxiliary,
    Encoding,
    Program,
    Variant,
)
from .device_state import (
    RunnerConfig,
    apply_patches,
    new_features,
    new_state,
    new_tables,
    state_specs,
    write_bias_row,
    write_mask_rows,
    write_table_rows,
)
from .mailbox import SPECS as MAILBOX_SPECS, new_mailbox
from .mesh import over, placed
from .program_cache import ProgramCache
from .programs import Key
from .step import make_step

if TYPE_CHECKING:
    from .model import ModelSpec


class _Part(NamedTuple):
    """What becomes a program."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    """Shapes."""
    specs: tuple[Any, ...]
    """How they lie on a mesh; one of them may be for a tree of arrays."""
    out: Any
    """How the results do."""
    donated: tuple[int, ...] = ()
    """The arguments that results take the place of."""


_EVERYWHERE = PartitionSpec()
_FEW_ROWS = 16
"""Up to here XLA's own kernels read weights faster than cuBLASLt's; beyond it is the reverse."""


def compiler_options(key: Key) -> dict[str, bool | int]:
    """What XLA is told for a program, beside its defaults.

    The autotuner compares products one at a time, with their weights in the cache, and so picks
    its own kernels where cuBLASLt's are faster in a step. Not to try them saves compile time, too.
    Nor shall it make one product of those by a weight and by A of its adapters: it copies both to
    join them.
    """
    if jax.default_backend() != "gpu":
        return {}
    few = isinstance(key, Program) and key.tokens < _FEW_ROWS
    return {
        "xla_gpu_enable_triton_gemm": few,
        "xla_gpu_dot_merger_threshold_mb": 0,
        # processes would wait for each other's results, though each compiles in an order of its own
        "xla_gpu_shard_autotuning": False,
    }


def planned(spec: "ModelSpec", config: RunnerConfig) -> list[Key]:
    """All programs, those that a fresh engine is likely to need first in front."""
    steps = config.buckets.programs()
    needless = {Auxiliary.WRITE_ADAPTER} if spec.adapters is None else set()
    return [*steps[:2], *config.encodings, *steps[2:], *(a for a in Auxiliary if a not in needless)]


@dataclasses.dataclass(frozen=True)
class ForReplicas:
    """A program lowered for each of several replicas."""

    lowered: Sequence[jax.stages.Lowered]

    def compile(self, compiler_options: dict[str, Any] | None = None) -> list[jax.stages.Compiled]:
        """For one after the other: on a GPU, JAX's cache has it from the second on."""
        return [one.compile(compiler_options=compiler_options) for one in self.lowered]


class Lowering:
    """Lowers the programs of one model at one set of sizes. Uses no device memory."""

    def __init__(self, spec: "ModelSpec", config: RunnerConfig, cache: Path | None = None) -> None:
        """`cache` is a folder for traced programs; None traces them in every process."""
        # the first replica's, of which all others differ in the devices alone
        self._spec = spec
        self._config = config
        self._state_specs = state_specs(spec)
        self._state = jax.eval_shape(lambda: new_state(spec, config))
        self._tables = jax.eval_shape(lambda: new_tables(spec, config))
        self._features = jax.eval_shape(lambda: new_features(spec, config))
        self._mailbox = None
        if config.mailbox and spec.mesh is not None:
            self._mailbox = jax.eval_shape(functools.partial(new_mailbox, spec, spec.mesh))
        # the config is what a graph definition is made from
        encoders = None if spec.media is None else spec.media.encoders
        model = spec.architecture, spec.config, spec.shapes, encoders
        mesh = None if spec.mesh is None else (tuple(spec.mesh.shape.items()), spec.specs)
        self._cache = ProgramCache(cache, (*model, mesh, self._state, self._tables, config))

    def __call__(self, key: Key) -> jax.stages.Lowered:
        """The lowered program of `key`; its arguments are as in `make_step` or `device_state`."""
        return self._lowered(key, self._spec.mesh)[0]

    def for_replicas(self, key: Key) -> "ForReplicas":
        """The program of `key` for each replica, traced once."""
        return ForReplicas(self._lowered(key, *self._spec.meshes))

    def _lowered(self, key: Key, *meshes: Mesh | None) -> list[jax.stages.Lowered]:
        match key:
            case Program():
                part = self._step(key)
            case Encoding():
                part = self._encoding(key)
            case Auxiliary():
                part = self._auxiliary(key)
        function = over(self._spec.mesh, part.function, part.specs, part.out)
        jitted = jax.jit(function, donate_argnums=part.donated)
        args = [placed(part.args, part.specs, mesh) for mesh in meshes]
        return self._cache.lower(key, jitted, part.donated, *args)

    def _step(self, program: Program) -> _Part:
        step = make_step(self._graphdef(adapted=program.adapters), program, self._config)
        tables = self._tables if program.variant >= Variant.PENALIZED else None
        packed = jax.ShapeDtypeStruct((self._config.layout(program).size,), jnp.int32)
        adapters = self._adapters if program.adapters else None
        features = None if program.decode else self._features
        args = self._spec.shapes, adapters, features, self._mailbox, self._state, tables, packed
        every, state = _EVERYWHERE, self._state_specs
        mailbox = every if self._mailbox is None else MAILBOX_SPECS
        specs = self._spec.specs, self._adapter_specs(adapters), every, mailbox, state, every, every
        return _Part(step, args, specs, (state, every, every), donated=(4, 5))

    def _encoding(self, key: Encoding) -> _Part:
        assert self._spec.media is not None, "only planned for models that take media"
        encoder = self._spec.media.encoders[key.kind]
        rows = jax.ShapeDtypeStruct((encoder.num_rows(key.units),), jnp.int32)
        args = self._spec.shapes, self._features, encoder.abstract(key.units), rows
        specs = self._spec.specs, *(_EVERYWHERE,) * 3
        return _Part(self._encode, args, specs, _EVERYWHERE, donated=(1,))

    def _encode(
        self, params: Any, features: jax.Array, inputs: dict[str, jax.Array], rows: jax.Array
    ) -> jax.Array:
        """Room for features [F, E] with new ones in `rows`; F or more is padding."""
        encoded = functional.bind(self._spec.graphdef, params).encode(inputs)
        return features.at[rows].set(encoded.astype(features.dtype), mode="drop")

    def _auxiliary(self, key: Auxiliary) -> _Part:
        vocab, width = self._spec.config.vocab_size, self._spec.config.hidden_size
        slot = jax.ShapeDtypeStruct((), jnp.int32)
        counts = jax.ShapeDtypeStruct((vocab,), jnp.uint16)
        bias = jax.ShapeDtypeStruct((vocab,), jnp.float32)
        hidden = jax.ShapeDtypeStruct((AUXILIARY_TOKENS, width), self._spec.dtype)
        targets = jax.ShapeDtypeStruct((AUXILIARY_TOKENS,), jnp.int32)
        patches = jax.ShapeDtypeStruct((AUXILIARY_PATCHES, 3), jnp.int32)
        match key:
            case Auxiliary.PATCH_PAGES:
                specs = self._state_specs, _EVERYWHERE
                return _Part(apply_patches, (self._state, patches), specs, specs[0], donated=(0,))
            case Auxiliary.WRITE_TABLES:
                return self._writing(write_table_rows, self._tables, slot, counts, bias)
            case Auxiliary.WRITE_BIAS:
                return self._writing(write_bias_row, self._tables, slot, bias)
            case Auxiliary.WRITE_MASKS:
                slots = jax.ShapeDtypeStruct((AUXILIARY_MASKS,), jnp.int32)
                masks = jax.ShapeDtypeStruct((AUXILIARY_MASKS, -(-vocab // 32)), jnp.int32)
                return self._writing(write_mask_rows, self._tables, slots, masks)
            case Auxiliary.WRITE_ADAPTER:
                assert self._spec.adapters is not None, "only planned with adapters"
                write, packed = self._spec.adapters.write, self._spec.adapters.packed
                lie = self._adapter_specs(self._adapters)
                specs = lie, _EVERYWHERE, PartitionSpec(TENSOR)
                args = self._adapters, slot, packed
                return _Part(write, args, specs, lie, donated=(0,))
            case Auxiliary.TOP_LOGPROBS:
                return self._reading(self._top_logprobs, hidden, targets, targets)
            case Auxiliary.ALL_LOGPROBS:
                return self._reading(self._all_logprobs, hidden, targets)

    def _writing(self, write: Callable[..., Any], target: Any, *args: Any) -> _Part:
        """What writes into its first argument, which lies everywhere."""
        specs = (_EVERYWHERE,) * (len(args) + 1)
        return _Part(write, (target, *args), specs, _EVERYWHERE, donated=(0,))

    def _reading(self, read: Callable[..., Any], *args: Any) -> _Part:
        """What reads the weights."""
        lie = self._spec.specs, self._adapter_specs(self._adapters)
        specs = *lie, *(_EVERYWHERE,) * len(args)
        return _Part(read, (self._spec.shapes, self._adapters, *args), specs, _EVERYWHERE)

    @property
    def _adapters(self) -> dict[str, jax.ShapeDtypeStruct] | None:
        return self._spec.adapters and self._spec.adapters.shapes

    def _adapter_specs(self, given: object) -> Any:
        """How adapters lie, if any are given."""
        return _EVERYWHERE if given is None else self._spec.adapters.specs

    def _graphdef(self, *, adapted: bool) -> Any:
        if adapted and self._spec.adapters is not None:
            return self._spec.adapters.graphdef
        return self._spec.graphdef

    def _logits(
        self,
        params: dict[str, jax.Array],
        adapters: dict[str, jax.Array] | None,
        hidden: jax.Array,
        slots: jax.Array,
    ) -> jax.Array:
        graphdef = self._graphdef(adapted=adapters is not None)
        return functional.bind(graphdef, params | (adapters or {})).logits(hidden, slots)

    def _top_logprobs(
        self, params: Any, adapters: Any, hidden: jax.Array, slots: jax.Array, targets: jax.Array
    ) -> sampler.LogprobResult:
        logits = self._logits(params, adapters, hidden, slots)
        return sampler.logprobs(logits, targets, self._config.top_logprobs)

    def _all_logprobs(
        self, params: Any, adapters: Any, hidden: jax.Array, slots: jax.Array
    ) -> jax.Array:
        return jax.nn.log_softmax(self._logits(params, adapters, hidden, slots))
