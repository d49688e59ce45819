"""Makes tests/fixtures/opt_download: a tiny OPT as the Hub's facebook/opt-125m lies on a disk.

Run by hand, with torch and transformers installed: `python scripts/make_opt_fixture.py`.
The config is in the old style, the float16 weights are a pickle whose names begin with `decoder.`,
and the tokenizer's files are those of tests/fixtures/tokenizers/opt. expected.json holds what
`transformers` generates in float32, greedily and with five beams.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
OUTPUT = FIXTURES / "opt_download"
PROMPTS = [
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
]
NEW_TOKENS, BEAMS, BEAM_TOKENS = 16, 5, 50
LEAST_MARGIN = 0.03
"""Between the best and the second logit of a greedy step: float16 decides nothing."""

CONFIG = {
    "_name_or_path": "opt-125m",
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "architectures": ["OPTForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "do_layer_norm_before": True,
    "dropout": 0.1,
    "eos_token_id": 2,
    "ffn_dim": 64,
    "hidden_size": 32,
    "init_std": 0.02,
    "layerdrop": 0.0,
    "max_position_embeddings": 128,
    "model_type": "opt",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 1,
    "prefix": "</s>",
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 328,
    "word_embed_proj_dim": 32,
}


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(FIXTURES / "tokenizers" / "opt")
    for seed in range(1000):
        model = random_model(seed)
        greedy, margin = greedy_texts(model, tokenizer)
        if margin > LEAST_MARGIN:
            break
    else:
        raise RuntimeError("No seed gives clear greedy tokens; widen the weights.")
    print(f"seed {seed}, margin {margin:.3f}")
    write(model, {"greedy": greedy, "beams": beam_texts(model, tokenizer)})


def random_model(seed: int) -> Any:
    torch.manual_seed(seed)
    fields = {name: value for name, value in CONFIG.items() if name != "torch_dtype"}
    model = transformers.OPTForCausalLM(transformers.OPTConfig(**fields)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 1.0 if "embed" in name else 0.25)
            else:
                parameter.normal_(1 if name.endswith("weight") else 0, 0.3)
            parameter.copy_(parameter.half())
    return model


@torch.no_grad()
def greedy_texts(model: Any, tokenizer: Any) -> tuple[list[dict[str, Any]], float]:
    """What each prompt becomes, and the smallest margin on the way; 0 where an output repeats."""
    texts, margin = [], float("inf")
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        made = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = torch.stack(made.logits).topk(2).values
        margin = min(margin, float((best[..., 0] - best[..., 1]).min()))
        ids = made.sequences[0, inputs.input_ids.shape[1] :].tolist()
        if len(set(ids)) < NEW_TOKENS // 4:
            return [], 0.0
        texts.append(completion(tokenizer, prompt, ids))
    return texts, margin


@torch.no_grad()
def beam_texts(model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    made = model.generate(
        **inputs,
        do_sample=False,
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        max_new_tokens=BEAM_TOKENS,
    )
    start = inputs.input_ids.shape[1]
    pad = CONFIG["pad_token_id"]
    each = [[token for token in row.tolist() if token != pad] for row in made[:, start:]]
    return [completion(tokenizer, PROMPTS[0], ids) for ids in each]


def completion(tokenizer: Any, prompt: str, ids: list[int]) -> dict[str, Any]:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return {"prompt": prompt, "token_ids": ids, "text": text}


def write(model: Any, expected: dict[str, Any]) -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    ids = {name: CONFIG[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (OUTPUT / "generation_config.json").write_text(json.dumps(ids | {"_from_model_config": True}))
    names = {name.removeprefix("model."): t.half() for name, t in model.state_dict().items()}
    names.pop("lm_head.weight")
    torch.save(names, OUTPUT / "pytorch_model.bin")
    (OUTPUT / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
