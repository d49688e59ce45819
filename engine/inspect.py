"""Facts about a model, without its weights."""

import dataclasses
import math
from typing import Any

from ..models.shards import shape_without_copies
from .model import find_spec
from .options import make_options


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What `quire info` prints: of the model as it is, however many devices share it."""

    architecture: str
    folder: str
    dtype: str
    num_parameters: int
    weight_bytes: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int
    """Tokens; prompt and output together."""
    kv_bytes_per_token: int


def model_info(model: str | None = None, **options: Any) -> ModelInfo:
    """Reads a model's config, no weights. Takes `Engine`'s arguments and raises its errors."""
    spec = find_spec(make_options(model, **options), weights=False)
    config = spec.config
    heads = config.num_kv_heads // config.kv_copies
    sizes = {
        name: math.prod(shape_without_copies(shape.shape, spec.copies.get(name, 1)))
        for name, shape in spec.shapes.items()
    }
    per_token = 2 * config.num_layers * heads * config.head_dim
    return ModelInfo(
        architecture=spec.architecture.__name__,
        folder=str(spec.source.folder),
        dtype=str(spec.dtype),
        num_parameters=sum(sizes.values()),
        weight_bytes=sum(sizes[name] * s.dtype.itemsize for name, s in spec.shapes.items()),
        num_layers=config.num_layers,
        num_kv_heads=heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_model_len=config.max_model_len,
        kv_bytes_per_token=per_token * spec.cache_dtype.itemsize,
    )
