"""Makes tests/fixtures/lora: PEFT's own adapters of the models in tests/fixtures/models.

Run by hand, with torch, transformers and peft installed: `python scripts/make_lora_fixtures.py`.
Each folder holds adapter_config.json and adapter_model.safetensors as `save_pretrained` writes
them, and expected.npz: the model's name, a prompt, and the logits that PEFT computes of it, from
the adapter as it loads it from that folder.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
PROMPT_LENGTH = 9
LARGEST_FILE = 40_000
"""Bytes."""
LEAST_EFFECT = 0.1
"""Of an adapter on some logit."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model, what `LoraConfig` is given, and how the files are changed afterwards."""

    model: str
    options: dict[str, Any]
    dtype: torch.dtype = torch.float32
    old_names: bool = False
    """Whether the adapter's name stands in those of its tensors, as in early files."""
    config_edits: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of adapter_config.json as a person may write them."""


ALL = {"target_modules": "all-linear"}
EMBEDDINGS = {"r": 4, "target_modules": ["embed_tokens", "lm_head", "v_proj"]}

VARIANTS = {
    "llama2": Variant("llama2", {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}),
    "llama2_embeddings": Variant("llama2", EMBEDDINGS),
    "llama2_old_names": Variant("llama2", {"r": 4, "target_modules": ["k_proj"]}, old_names=True),
    "llama3_tied": Variant("llama3", EMBEDDINGS),
    "llama3_tied_together": Variant(
        "llama3", {"r": 4, "target_modules": ["embed_tokens"], "ensure_weight_tying": True}
    ),
    "llama31_regex": Variant(
        "llama31",
        {
            "r": 4,
            "target_modules": r".*\.1\.(self_attn\.(q|k|v|o)_proj|mlp\..*_proj)",
            "exclude_modules": r".*\.k_proj",
            "rank_pattern": {"(q|v)_proj": 8, r"^model\.layers\.1\.mlp\.up_proj": 2},
            "alpha_pattern": {"self_attn.q_proj": 3, "down_proj": 20},
        },
    ),
    "llama_bias": Variant("llama_bias", ALL | {"r": 8, "lora_alpha": 4, "use_rslora": True}),
    "mistral": Variant("mistral", ALL | {"r": 8}, torch.bfloat16, config_edits=ALL),
    "qwen2_layers": Variant(
        "qwen2",
        {
            "r": 8,
            "target_modules": ["k_proj", "gate_proj", "down_proj"],
            "layers_to_transform": [1],
            "layers_pattern": "layers",
        },
    ),
    "qwen3": Variant(
        "qwen3",
        ALL | {"r": 4, "rank_pattern": {"k_proj": 8}, "use_rslora": True},
        torch.float16,
    ),
    "phi3": Variant("phi3", ALL | {"r": 8, "lora_alpha": 16}),
    "opt": Variant("opt", ALL | {"r": 8}),
    "opt_350m": Variant(
        "opt_350m",
        {"r": 4, "target_modules": ["embed_tokens", "fc1", "project_in", "project_out", "k_proj"]},
    ),
}


def main() -> None:
    torch.set_num_threads(1)
    for seed, (name, variant) in enumerate(VARIANTS.items()):
        folder = FIXTURES / "lora" / name
        folder.mkdir(parents=True, exist_ok=True)
        save_adapter(folder, variant, seed)
        prompt, logits = reference(folder, variant, seed)
        expected = {"model": variant.model, "prompt": prompt, "logits": logits}
        np.savez_compressed(folder / "expected.npz", **expected)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        assert max(sizes.values()) <= LARGEST_FILE, sizes
        print(name, sizes)


def base_model(name: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        FIXTURES / "models" / name, attn_implementation="eager", dtype=torch.float32
    ).eval()


def save_adapter(folder: Path, variant: Variant, seed: int) -> None:
    torch.manual_seed(seed)
    options = {"task_type": "CAUSAL_LM", **variant.options}
    model = peft.get_peft_model(base_model(variant.model), peft.LoraConfig(**options))
    tied = variant.options.get("ensure_weight_tying", False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # a head that is tied to the embedding's adapter shares its memory
            if "lora_" in name and not (tied and "lm_head" in name):
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        fields = json.loads(Path(saved, "adapter_config.json").read_text())
        tensors = load_file(Path(saved, "adapter_model.safetensors"))
    write(folder, variant, fields, tensors)


def write(
    folder: Path, variant: Variant, fields: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    fields |= {"base_model_name_or_path": f"fixtures/{variant.model}"} | variant.config_edits
    if isinstance(fields["target_modules"], list):
        fields["target_modules"].sort()  # PEFT writes them in the order of a set
    tensors = {
        old_name(name) if variant.old_names else name: tensor.to(variant.dtype).contiguous()
        for name, tensor in tensors.items()
    }
    config = json.dumps(fields, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(config + "\n")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def old_name(name: str) -> str:
    return name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")


@torch.no_grad()
def reference(folder: Path, variant: Variant, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A prompt, and its logits by PEFT with the adapter in `folder`."""
    base = base_model(variant.model)
    prompt = np.random.default_rng(seed).integers(0, base.config.vocab_size, PROMPT_LENGTH)
    tokens = torch.tensor(prompt)[None]
    plain = base(tokens, use_cache=False).logits[0]
    model = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    logits = model(tokens, use_cache=False).logits[0]
    assert (logits - plain).abs().max() > LEAST_EFFECT
    return prompt.astype(np.int32), logits.numpy()


if __name__ == "__main__":
    main()
