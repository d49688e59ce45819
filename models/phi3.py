"""Phi-3 and Phi-3.5: Llama with longrope, from a checkpoint whose projections are fused."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from . import hf_config, rope
from .checkpoint_map import Piece
from .llama import Llama, LlamaConfig, qkv_indices


@dataclasses.dataclass(frozen=True)
class Phi3Config(LlamaConfig):
    """The rope types `su` and `yarn` of early files mean longrope."""

    @classmethod
    def _fields(cls, hf: hf_config.HfConfig, max_model_len: int | None) -> dict[str, Any]:
        hf = {"rms_norm_eps": 1e-5, **_with_rope_type(hf)}
        fields = super()._fields(hf, max_model_len)
        return fields | {
            "windows": (hf_config.window(hf),) * fields["num_layers"],
            "qkv_bias": False,
            "out_bias": False,
            "mlp_bias": False,
        }


def _with_rope_type(hf: hf_config.HfConfig) -> dict[str, Any]:
    parameters = rope.rope_parameters(hf)
    if parameters["rope_type"] in ("su", "yarn"):
        parameters["rope_type"] = "longrope"
    return {**hf, "rope_scaling": None, "rope_parameters": parameters}


class Phi3(Llama):
    """`Phi3ForCausalLM`."""

    config_class: ClassVar[type[LlamaConfig]] = Phi3Config

    @classmethod
    def _fused_pieces(cls, config: LlamaConfig, source: str, target: str) -> Iterator[Piece]:
        size, kv = config.head_dim, config.num_kv_heads // config.kv_copies * config.head_dim
        k, v = config.num_heads * size, config.num_heads * size + kv
        rows = {"q": slice(0, k), "k": slice(k, v), "v": slice(v, v + kv)}
        tensor, param = f"{source}.self_attn.qkv_proj.weight", f"{target}.attention.qkv"
        groups = config.num_heads // config.num_kv_heads
        for name, index in qkv_indices(groups, config.kv_copies):
            yield Piece(tensor, param, index, rows[name])
        yield Piece(f"{source}.mlp.gate_up_proj.weight", f"{target}.mlp.gate_up")
