"""Writes tests/fixtures/beam/, what the beam search of `transformers` gives, for tests to compare.

Needs torch and transformers. Run by hand: `python scripts/make_beam_fixtures.py [STORIES260K]`.

* `rules.json`: a model that is a table of random logits by position and last token, small enough to
  try every option; it decides the rules of the search without an engine.
* `expected.json`: models of tests/fixtures/models, 5 beams of up to 50 tokens.
* `stories260k.json`: the same for the trained model in the folder STORIES260K, if one is given.
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutput

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
VARIANTS = (
    {"length_penalty": 1.0, "early_stopping": False},
    {"length_penalty": 1.0, "early_stopping": True},
    {"length_penalty": 2.0, "early_stopping": "never"},
    {"length_penalty": -0.5, "early_stopping": False},
    {"length_penalty": 0.0, "early_stopping": "never"},
)
STORIES = ("Once upon a time,", "Lily and Tom", "The big dog was", "One day, a little bird")
Case = dict[str, Any]


class TableConfig(PretrainedConfig):
    model_type = "table"


class TableModel(PreTrainedModel, GenerationMixin):
    """Logits looked up by the number of tokens so far and the last token."""

    config_class = TableConfig

    def __init__(self, config: TableConfig, table: torch.Tensor) -> None:
        super().__init__(config)
        self.register_buffer("table", table)
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def forward(self, input_ids: torch.Tensor, **_: object) -> CausalLMOutput:
        positions = torch.arange(input_ids.shape[1])
        return CausalLMOutput(logits=self.table[positions, input_ids])


def table_of(seed: int, length: int, vocab_size: int, likely: list[int]) -> np.ndarray:
    """Float32 [length, V, V], the same in every version of numpy; `likely` tokens come up often."""
    random = np.random.RandomState(seed)
    table = 1.5 * random.standard_normal((length, vocab_size, vocab_size))
    table[..., likely] += 2
    return table.astype(np.float32)


def search(model: Any, prompt: list[int], case: Case) -> list[Case]:
    """Beams, best first, as dicts of token ids without the prompt, and the score."""
    width, eos = case["beam_width"], case["eos_token_ids"]
    given = torch.tensor([prompt])
    result = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=case["max_tokens"],
        length_penalty=case["length_penalty"],
        early_stopping=case["early_stopping"],
        eos_token_id=eos or None,
        pad_token_id=-1,
        do_sample=False,
        use_cache=not isinstance(model, TableModel),
        return_dict_in_generate=True,
        output_scores=True,
    )
    outputs = result.sequences[:, len(prompt) :].tolist()
    return [
        {"token_ids": [t for t in tokens if t != -1], "score": score}
        for tokens, score in zip(outputs, result.sequences_scores.tolist(), strict=True)
    ]


def rules() -> list[Case]:
    """Cases of the table model: every option against every other."""
    widths_and_eos = ((2, [3]), (3, [1, 7]), (4, []), (4, [5]))
    stops, penalties = (False, True, "never"), (-0.3, 0.0, 0.7, 1.0, 2.5)
    cases = []
    options = itertools.product(widths_and_eos, stops, penalties, range(3))
    for seed, ((width, eos), stop, penalty, _) in enumerate(options):
        case = {
            "seed": seed,
            "vocab_size": 16,
            "beam_width": width,
            "eos_token_ids": eos,
            "max_tokens": 3 + 2 * (seed % 7),
            "early_stopping": stop,
            "length_penalty": penalty,
        }
        table = table_of(seed, case["max_tokens"] + 1, case["vocab_size"], eos)
        model = TableModel(TableConfig(vocab_size=case["vocab_size"]), torch.from_numpy(table))
        cases.append({**case, "beams": search(model, [0], case)})
    return cases


def real(folder: Path, prompts: list[list[int]], eos: list[int]) -> list[Case]:
    """Cases of one model, with `eos` for the tokens that end a text."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    cases = []
    for variant in VARIANTS:
        case = {"model": folder.name, "beam_width": 5, "max_tokens": 50, "eos_token_ids": eos}
        case |= {**variant, "prompts": prompts}
        cases.append({**case, "beams": [search(model, prompt, case) for prompt in prompts]})
    return cases


def random_prompts(seed: int, vocab_size: int) -> list[list[int]]:
    """Token ids of prompts of several lengths."""
    random = np.random.RandomState(seed)
    return [random.randint(0, vocab_size, length).tolist() for length in (1, 9, 16, 40)]


def stories(folder: Path) -> list[Case]:
    """Cases of the trained model; in most a full stop ends the text, too."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(text)["input_ids"] for text in STORIES]
    full_stop = tokenizer("One day. He went. It was.")["input_ids"][-1]
    return real(folder, prompts, [2])[:1] + real(folder, prompts, [2, full_stop])


def main() -> None:
    """Writes both files."""
    write("rules.json", rules())
    models = FIXTURES / "models"
    endless = real(models / "llama31", random_prompts(0, 112), [])[:1]
    ending = real(models / "qwen3", random_prompts(1, 112), list(range(40, 50)))
    write("expected.json", endless + ending)
    if len(sys.argv) > 1:
        write("stories260k.json", stories(Path(sys.argv[1])))


def write(name: str, cases: list[Case]) -> None:
    """One case a line."""
    path = FIXTURES / "beam" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    path.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
