"""What the scripts that make fixtures of vision models with videos share; needs torch and
transformers.

Their tokenizers have a token for each of `CHARACTERS`, behind special ones of which the last two
are <image> and <video>.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CHARACTERS = [*map(chr, range(33, 127)), "Ġ", "Ċ"]
"""Printable ASCII, space and line feed, as byte-level tokenizers write them."""
NEW_TOKENS = 64
LEAST_MARGIN = 0.005
"""Between the best and the second logit of a greedy step, so that rounding decides nothing."""


def numbered(special: Sequence[str]) -> dict[str, int]:
    """The tokens and their ids."""
    return {token: i for i, token in enumerate([*special, *CHARACTERS])}


def waves(*size: int) -> np.ndarray:
    """Waves with a little noise that move along time, uint8 [..., H, W, 3]."""
    random = np.random.default_rng(size)
    *t, y, x = np.indices(size)
    moved = [np.sin(x / (4 + c) + y / (6 + c) + sum(t) * (1 + c) / 3) * 90 + 128 for c in range(3)]
    pixels = np.stack(moved, -1) + random.normal(0, 4, (*size, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


@torch.no_grad()
def randomize(model: Any, special: Sequence[str]) -> Any:
    """Weights of which media and text both show in the logits, and that say characters."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.3)
        elif "norm" in name or "layrnorm" in name:
            parameter.normal_(1, 0.3)
        elif "embed_tokens" in name or "newline" in name:
            parameter.normal_(0, 1.0)
        elif "position" in name:
            parameter.normal_(0, 0.5)
        else:
            parameter.normal_(0, 1.4 * parameter[0].numel() ** -0.5)
    model.lm_head.weight[: len(special)] *= 0.1
    model.lm_head.weight[len(numbered(special)) :] *= 0.1
    return model.eval()


@torch.no_grad()
def continued(
    model: Any, inputs: Any, rows: list[np.ndarray], special: Sequence[str]
) -> dict[str, np.ndarray] | None:
    """None where greedy tokens are nearly a tie, much the same, or special.

    Args:
        inputs: of the prompt; its tokens alone where the model cannot take its media together.
        rows: features of the media, in order.
    """
    prompt, tokens = inputs["input_ids"][0], numbered(special)
    embed = model.get_input_embeddings()
    x = embed(prompt)
    if rows:
        x[(prompt == tokens["<image>"]) | (prompt == tokens["<video>"])] = torch.tensor(
            np.concatenate(rows)
        )
    whole = model(inputs_embeds=x[None], use_cache=False).logits[0]
    if not rows or len(inputs) > 2:  # more than tokens and their mask
        given = model(**inputs, use_cache=False).logits[0]
        if torch.abs(given - whole).max() > 1e-4:
            raise RuntimeError("The features are not those that the model makes of the prompt.")
        whole = given
    greedy: list[int] = []
    for _ in range(NEW_TOKENS):
        logits = model(inputs_embeds=x[None], use_cache=False).logits[0]
        best = logits[-1].topk(2)
        token = int(best.indices[0])
        if best.values[0] - best.values[1] < LEAST_MARGIN or token < len(special):
            return None
        greedy.append(token)
        x = torch.cat([x, embed(best.indices[:1])])
    if len(set(greedy)) < 8 or max(greedy) >= len(tokens):
        return None
    return {
        "prompt": prompt.numpy().astype(np.int32),
        "logits": whole.numpy(),
        "greedy": np.array(greedy, np.int32),
    }


def old_name(name: str) -> str:
    """As in the published checkpoints."""
    for new, old in (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.", ""),
    ):
        if name.startswith(new):
            return old + name.removeprefix(new)
    raise RuntimeError(f"The tensor {name} is new; add its old name.")


def write_tokenizer(folder: Path, special: Sequence[str], **settings: str) -> None:
    """Both files; `settings` are further ones of the second."""
    tokenizer = Tokenizer(models.BPE(vocab=numbered(special), merges=[]))
    tokenizer.add_special_tokens(list(special))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    fixed = {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", fixed | settings)


def write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", "utf-8")
