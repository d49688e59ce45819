"""Every architecture through the whole engine, against what `transformers` generates."""

import json
from pathlib import Path

import numpy as np
import pytest

from quire import Engine, SamplingParams

FIXTURES = Path(__file__).parents[1] / "fixtures"
STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260k"
OPTIONS = {
    "enforce_eager": True,
    "dtype": "float32",
    "use_tqdm_on_load": False,
    "kv_cache_memory_bytes": 2**23,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 32,
}


@pytest.mark.parametrize("folder", sorted((FIXTURES / "models").iterdir()), ids=lambda f: f.name)
def test_greedy_tokens_agree(folder: Path) -> None:
    """Both prompts at once, the longer one in chunks, the shorter three times."""
    expected = np.load(folder / "expected.npz")
    limit = int(expected["max_model_len"]) or None
    greedy = [expected[f"greedy_{i}"].tolist() for i in range(2)]
    prompts = [expected[f"prompt_{i}"].tolist() for i in (0, 1, 0, 0)]
    params = [
        SamplingParams(temperature=0, max_tokens=len(greedy[i]), ignore_eos=True)
        for i in (0, 1, 0, 0)
    ]
    with Engine(folder, skip_tokenizer_init=True, max_model_len=limit, **OPTIONS) as engine:
        outputs = engine.generate(prompts, params, use_tqdm=False)
        assert engine.stats().pages_in_use == 0
    got = [output.outputs[0].token_ids for output in outputs]
    assert got == [greedy[0], greedy[1], greedy[0], greedy[0]]


@pytest.mark.skipif(not STORIES.is_dir(), reason="the TinyStories-260K checkpoint is not here")
def test_a_trained_model_tells_the_reference_stories() -> None:
    stories = json.loads((FIXTURES / "stories260k.json").read_text())
    # min_new_tokens of the reference forbids the end of the text, as min_tokens does here.
    params = SamplingParams(temperature=0, max_tokens=128, min_tokens=128)
    options = {**OPTIONS, "max_num_seqs": 20, "max_num_batched_tokens": 64}
    with Engine(STORIES, **options) as engine:
        outputs = engine.generate([s["prompt"] for s in stories], params, use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == [s["ids"] for s in stories]
    for output, story in zip(outputs, stories, strict=True):
        assert output.outputs[0].token_ids == story["greedy"]
