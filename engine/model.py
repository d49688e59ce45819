"""Which model an engine runs: from a name to a definition whose shapes are known."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from ..models import attention, functional, registry
from ..models.config import TextConfig
from ..models.features import is_in_tower
from ..models.shards import has_copies
from .adapter_arrays import AdapterSpec, adapter_spec
from .checkpoint import (
    Source,
    find_model,
    find_parts,
    joined,
    load_params,
    read_config,
    resolve_dtype,
)
from .media_spec import MediaSpec, media_spec
from .mesh import (
    Specs,
    device_bytes,
    devices_of,
    make_meshes,
    num_devices,
    shardings,
    shared_out,
    specs_of,
)
from .options import EngineOptions

_MODELS = Path(__file__).resolve().parent.parent / "models"
DEMO_FOLDER = _MODELS / "demo"
DEMO = "demo"
EMBEDDED = {
    DEMO: DEMO_FOLDER,
    "vision-demo": _MODELS / "vision_demo",
    "audio-demo": _MODELS / "audio_demo",
}
"""Models that Quire comes with, by name. A folder of that name goes first."""


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A model without its weights."""

    source: Source
    hf_config: dict[str, Any]
    """With those of its parts."""
    architecture: type
    config: TextConfig
    dtype: jnp.dtype
    cache_dtype: jnp.dtype
    """Of the KV pool: `dtype`, on a CPU float32, since XLA copies a pool of 16-bit floats there."""
    cache_head_dim: int
    """Head size of the KV pool: the model's, padded where the attention kernels need it."""
    page_size: int
    """Tokens of a KV page, unless an option says otherwise."""
    graphdef: Any
    """The static half of the Flax module; `models.functional.bind` joins it with parameters."""
    shapes: dict[str, jax.ShapeDtypeStruct]
    """Shape and type of every parameter, by dotted path."""
    mesh: Mesh | None
    """The devices that share it; None for one."""
    meshes: tuple[Mesh | None, ...]
    """Those of each replica, of which this is one."""
    specs: Specs
    """How the parameters lie on them."""
    copied: frozenset[str]
    """Those that hold KV heads, of which devices may have copies."""
    adapters: AdapterSpec | None
    """Room for adapters; None without `enable_lora`."""
    media: MediaSpec | None
    """How it takes pictures, videos or sounds; None for a model of text alone."""

    @property
    def devices(self) -> int:
        """That share the weights."""
        return num_devices(self.mesh)

    @property
    def all_devices(self) -> list[jax.Device]:
        """Those of all replicas."""
        return [one for mesh in self.meshes for one in devices_of(mesh)]

    @property
    def replicas(self) -> "list[ModelSpec]":
        """The specs of all replicas, in their order."""
        return [self._on(mesh) for mesh in self.meshes]

    def _on(self, mesh: Mesh | None) -> "ModelSpec":
        adapters = self.adapters and dataclasses.replace(self.adapters, mesh=mesh)
        return dataclasses.replace(self, mesh=mesh, adapters=adapters)

    @property
    def shardings(self) -> dict[str, NamedSharding] | None:
        """Those of the parameters; None for one device."""
        return None if self.mesh is None else shardings(self.specs, self.mesh)

    @property
    def copies(self) -> dict[str, int]:
        """Of KV heads, by the parameters that hold any."""
        copies = self.config.kv_copies
        return dict.fromkeys(self.copied, copies) if copies > 1 else {}

    @property
    def text_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Those of what a step runs: without the towers, which see and hear."""
        shapes, architecture = self.shapes, self.architecture
        return {p: shape for p, shape in shapes.items() if not is_in_tower(architecture, p)}

    @property
    def weight_bytes(self) -> int:
        """On all devices together, what is whole on each counted once."""
        return sum(shape.size * shape.dtype.itemsize for shape in self.shapes.values())

    @property
    def device_bytes(self) -> int:
        """Of the weights on one device."""
        return device_bytes(self.shapes, self.specs, self.mesh)


def find_spec(options: EngineOptions, *, weights: bool = True) -> ModelSpec:
    """Finds the model's folder and reads its config. Downloads it if need be, with its `weights`;
    of parts that are models of their own, what describes them. The spec is that of the first
    replica.

    Raises CheckpointError, ModelConfigError, UnsupportedModelError or OptionError.
    """
    name = DEMO if options.model is None else options.model
    if name in EMBEDDED and not Path(name).is_dir():
        folder = EMBEDDED[name]
    else:
        folder = find_model(
            name,
            revision=options.revision,
            download_dir=options.download_dir,
            weights=weights and options.load_format != "dummy",
        )
    hf_config = {**read_config(folder), **(options.hf_overrides or {})}
    architecture = registry.resolve(hf_config)
    parts = find_parts(getattr(architecture, "parts", {}), hf_config, options.download_dir)
    source, hf_config = Source(folder, parts), joined(hf_config, parts.values())
    config = architecture.config_class.from_hf(hf_config, max_model_len=options.max_model_len)
    meshes = make_meshes(
        options.data_parallel_size, options.tensor_parallel_size, options.mesh, config
    )
    mesh = meshes[0]
    config = shared_out(config, mesh)
    backend = jax.default_backend()
    dtype = resolve_dtype(options.dtype, hf_config, backend)
    cache_dtype = jnp.dtype(jnp.float32) if backend == "cpu" else dtype
    layout = attention.pool_layout(
        backend, str(cache_dtype), config.head_dim, config.num_heads // config.num_kv_heads
    )
    graphdef, shapes, axes = functional.abstract(architecture, config, dtype)
    return ModelSpec(
        source=source,
        hf_config=hf_config,
        architecture=architecture,
        config=config,
        dtype=dtype,
        cache_dtype=cache_dtype,
        cache_head_dim=layout.head_dim,
        page_size=layout.page_size,
        graphdef=graphdef,
        shapes=shapes,
        mesh=mesh,
        meshes=meshes,
        specs=specs_of(axes, shapes, mesh),
        copied=frozenset(name for name in shapes if has_copies(axes[name])),
        adapters=adapter_spec(
            name,
            architecture,
            config,
            shapes,
            axes,
            slots=options.max_loras,
            rank=options.max_lora_rank,
            mesh=mesh,
        )
        if options.enable_lora
        else None,
        media=media_spec(architecture, hf_config, config, source, options),
    )


def load_weights(spec: ModelSpec, options: EngineOptions) -> dict[str, jax.Array]:
    """The parameters on the device: from the checkpoint, or random for `load_format="dummy"`.

    Downloads weights of parts that are models of their own, where the checkpoint lacks some.
    """
    if options.load_format == "dummy":
        key = jax.random.key(options.seed)
        return functional.init_random(
            spec.architecture, spec.config, spec.dtype, key, spec.shardings
        )
    checkpoint_map = spec.architecture.checkpoint_map(spec.config)
    return load_params(
        spec.source.folder,
        spec.shapes,
        checkpoint_map,
        parts=spec.source.parts.values(),
        sharding=spec.shardings,
        copies=spec.copies,
        progress=options.use_tqdm_on_load,
    )
