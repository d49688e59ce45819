"""What only a GPU can show. Run with `pytest -m gpu`; together they take a few minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from quire import Engine, LoRARequest, RequestOutput, SamplingParams
from quire.engine.buckets import Variant
from quire.engine.memory import temporaries
from tests.deterministic import check_mixes
from tests.engine.conftest import poison_pool
from tests.lora_folders import lora_folder

pytestmark = pytest.mark.gpu
MODELS = Path(__file__).parents[1] / "fixtures" / "models"
QUESTIONS = ["The capital of France is", "12 + 30 =", "The day after Monday is", "Hello"]
SMALL = {
    "kv_cache_memory_bytes": 2**26,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 128,
    "use_tqdm_on_load": False,
    "enforce_eager": True,
}


@pytest.mark.parametrize("folder", sorted(MODELS.iterdir()), ids=lambda folder: folder.name)
def test_float32_gives_the_reference_tokens(folder: Path) -> None:
    check_tokens(folder)


def check_tokens(folder: Path, **given: int) -> None:
    """Greedy tokens in float32 are those of the reference; `given` are options."""
    expected = np.load(folder / "expected.npz")
    limit = int(expected["max_model_len"]) or None
    greedy = [expected[f"greedy_{i}"].tolist() for i in range(2)]
    prompts = [expected[f"prompt_{i}"].tolist() for i in range(2)]
    params = [
        SamplingParams(temperature=0, max_tokens=len(tokens), ignore_eos=True) for tokens in greedy
    ]
    options = {**SMALL, "dtype": "float32", "skip_tokenizer_init": True, "max_model_len": limit}
    with Engine(folder, **options, **given) as engine:
        outputs = engine.generate(prompts, params, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == greedy


def test_the_demo_model_answers_in_bfloat16() -> None:
    with Engine(dtype="bfloat16", **SMALL) as engine:
        outputs = engine.generate(QUESTIONS, SamplingParams(temperature=0), use_tqdm=False)
    texts = [output.outputs[0].text for output in outputs]
    assert [text.split(".")[0].split("\n")[0] for text in texts[:3]] == [
        " Paris",
        " 42",
        " Tuesday",
    ]


def test_every_variant_of_sampling_runs_and_seeds_hold() -> None:
    params = [
        SamplingParams(temperature=0.9, top_p=0.8, top_k=40, min_p=0.01, seed=4),
        SamplingParams(temperature=0),
        SamplingParams(temperature=1, seed=2, presence_penalty=1, repetition_penalty=1.2, n=2),
        SamplingParams(temperature=0, logprobs=5, prompt_logprobs=-1, bad_words=["the day"]),
    ]
    with Engine(dtype="float32", **SMALL) as engine:
        together = engine.generate(QUESTIONS, params, use_tqdm=False)
        alone = [
            engine.generate(prompt, one, use_tqdm=False)[0]
            for prompt, one in zip(QUESTIONS, params, strict=True)
        ]
    for first, second in zip(together, alone, strict=True):
        assert [o.token_ids for o in first.outputs] == [o.token_ids for o in second.outputs]


def test_kernels_in_bfloat16_agree_with_float32(tmp_path: Path) -> None:
    """Log-probabilities of a prompt in chunks, and of tokens after it, by kernels and by twins."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = {**SMALL, "load_format": "dummy", "skip_tokenizer_init": True}
    prompt = np.random.default_rng(0).integers(0, 512, 300).tolist()
    found = []
    weights: dict[str, np.ndarray] = {}
    for dtype in ("float32", "bfloat16"):
        with Engine(tmp_path, dtype=dtype, **options) as engine:
            if not weights:
                weights = {name: np.asarray(x) for name, x in engine.params.items()}
            engine.update_params({name: x.astype(dtype) for name, x in weights.items()})
            params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
            [whole] = engine.generate([prompt], params, use_tqdm=False)
            entries = zip(prompt[1:], (whole.prompt_logprobs or [])[1:], strict=True)
            found.append([(entry or {})[token].logprob for token, entry in entries])
    assert np.abs(np.subtract(*found)).max() < 0.05


@pytest.mark.parametrize("activation", ["silu", "gelu_new"])
def test_one_request_in_bfloat16_agrees_with_float32(llama_folder: Path, activation: str) -> None:
    """Log-probabilities of tokens that were made one by one, by the products of one row."""
    options = {**SMALL, "load_format": "dummy", "skip_tokenizer_init": True}
    wide = {"hidden_size": 1024, "intermediate_size": 2048, "hidden_act": activation}
    options["hf_overrides"] = wide
    prompt = list(range(40))
    with Engine(llama_folder, dtype="bfloat16", **options) as engine:
        weights = {name: np.asarray(x) for name, x in engine.params.items()}
        params = SamplingParams(temperature=1, seed=1, max_tokens=60, logprobs=0)
        [output] = engine.generate([prompt], params, use_tqdm=False)
    made = zip(output.outputs[0].token_ids, output.outputs[0].logprobs or [], strict=True)
    found = [entry[token].logprob for token, entry in made]
    with Engine(llama_folder, dtype="float32", **options) as engine:
        engine.update_params({name: x.astype(np.float32) for name, x in weights.items()})
        params = SamplingParams(max_tokens=1, prompt_logprobs=0)
        whole = [*prompt, *output.outputs[0].token_ids]
        [exact] = engine.generate([whole], params, use_tqdm=False)
    assert np.abs(np.subtract(found, _of_prompt(exact)[-len(found) :])).max() < 0.05


def _of_prompt(output: RequestOutput) -> list[float]:
    """Log-probabilities of the prompt's tokens but the first."""
    entries = zip(output.prompt_token_ids[1:], (output.prompt_logprobs or [])[1:], strict=True)
    return [(entry or {})[token].logprob for token, entry in entries]


@pytest.mark.parametrize("rows", [3, 24, 96])
def test_adapters_in_bfloat16_agree_with_float32(
    llama_folder: Path, tmp_path: Path, rows: int
) -> None:
    check_adapters(llama_folder, tmp_path, rows)


def check_adapters(llama_folder: Path, tmp_path: Path, rows: int, **given: Any) -> None:
    """Log-probabilities of prompts and of tokens after them, rows with and without adapters, are
    those of float32 on one GPU.

    Args:
        given: options of the engine in bfloat16.
    """
    made_up = {"all_linear": True, "scale": 0.05}
    requests = [
        LoRARequest(f"{n}", n, str(lora_folder(tmp_path / f"{n}", llama_folder, n, **made_up)))
        for n in (1, 2)
    ]
    asked = [(None, *requests)[row % 3] for row in range(rows)]
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 2048, 20 + row).tolist() for row in range(rows)]
    options = {**SMALL, "skip_tokenizer_init": True, "max_num_seqs": 128, "load_format": "dummy"}
    params = SamplingParams(temperature=0, max_tokens=6, prompt_logprobs=0, logprobs=0)
    params.ignore_eos = True
    options |= {"enable_lora": True, "max_loras": 2}
    with Engine(llama_folder, dtype="bfloat16", **options, **given) as engine:
        outputs = engine.generate(prompts, params, lora_request=asked, use_tqdm=False)
        weights = {name: np.asarray(x, np.float32) for name, x in engine.params.items()}
    with Engine(llama_folder, dtype="float32", **options) as engine:
        engine.update_params(weights)
        whole = [o.prompt_token_ids + o.outputs[0].token_ids for o in outputs]
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        exact = engine.generate(whole, params, lora_request=asked, use_tqdm=False)
        plain = engine.generate(whole, params, use_tqdm=False)
    found, want, without = [], [], []
    for output, right, base in zip(outputs, exact, plain, strict=True):
        made = zip(output.outputs[0].token_ids, output.outputs[0].logprobs or [], strict=True)
        found.append([*_of_prompt(output), *(entry[token].logprob for token, entry in made)])
        want.append(_of_prompt(right))
        without.append(_of_prompt(base))
    errors = [np.abs(np.subtract(a, b)).max() for a, b in zip(found, want, strict=True)]
    effects = [np.abs(np.subtract(a, b)).max() for a, b in zip(without, want, strict=True)]
    assert max(errors) < 0.05
    assert min(e for e, one in zip(effects, asked, strict=True) if one is not None) > 0.2


def test_deterministic_results_are_the_same_in_200_mixes(llama_folder: Path) -> None:
    options = {**SMALL, "load_format": "dummy", "skip_tokenizer_init": True}
    with Engine(llama_folder, deterministic=True, **options) as engine:
        check_mixes(engine, mixes=200, vocab_size=2048, longest=300)


def test_recycled_pages_may_hold_nan(llama_folder: Path) -> None:
    options = {**SMALL, "load_format": "dummy", "skip_tokenizer_init": True}
    prompts = [[5] * 3, [7, 3, 9] * 90, list(range(1, 100))]
    params = SamplingParams(temperature=0, max_tokens=80, ignore_eos=True)
    with Engine(llama_folder, **options) as engine:
        before = engine.generate(prompts, params, use_tqdm=False)
        engine.reset_prefix_cache()
        poison_pool(engine)
        after = engine.generate(prompts, params, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in before] == [o.outputs[0].token_ids for o in after]


def test_130_000_tokens_in_one_request(llama_folder: Path) -> None:
    """Whole steps of two sizes agree on what comes after a very long prompt."""
    config = json.loads((llama_folder / "config.json").read_text())
    options = {**SMALL, "load_format": "dummy", "skip_tokenizer_init": True, "max_num_seqs": 2}
    options |= {"max_model_len": 131072, "kv_cache_memory_bytes": 2**29}
    options["hf_overrides"] = {"max_position_embeddings": 131072}
    prompt = np.random.default_rng(0).integers(0, config["vocab_size"], 130_000).tolist()
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    found = []
    for tokens in (4096, 8192):
        with Engine(llama_folder, **options | {"max_num_batched_tokens": tokens}) as engine:
            [output] = engine.generate([prompt], params, use_tqdm=False)
            found.append(output.outputs[0].token_ids)
    assert found[0] == found[1]


def test_no_program_has_more_temporaries_than_the_plan(llama_folder: Path) -> None:
    options = {**SMALL, "max_num_batched_tokens": 2048, "max_num_seqs": 64}
    with Engine(llama_folder, load_format="dummy", skip_tokenizer_init=True, **options) as engine:
        parts = engine._running
        config = parts.replicas[0].runner._config
        planned = temporaries(parts.spec, config)
        for program in (config.buckets.largest, config.buckets.decode(64, Variant.FULL)):
            compiled: Any = parts.programs.exactly(program)
            memory = compiled.memory_analysis()
            assert memory.temp_size_in_bytes <= planned


def test_a_later_process_starts_from_the_programs_on_disk(
    llama_folder: Path, tmp_path: Path
) -> None:
    """Kernels included: what traces them is not even imported then."""
    options = {**SMALL, "load_format": "dummy", "skip_tokenizer_init": True}
    options["compilation_cache_dir"] = str(tmp_path)
    code = f"""
from quire import Engine, LoRARequest, RequestOutput, SamplingParams
with Engine({str(llama_folder)!r}, **{options!r}) as engine:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    print(engine.generate([[5, 3, 9]], params, use_tqdm=False)[0].outputs[0].token_ids)
"""
    command = [sys.executable, "-c", code]
    said = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    assert said[0].stdout == said[1].stdout != ""
    assert list((tmp_path / "programs").iterdir())


def test_close_gives_the_memory_back() -> None:
    device = jax.devices()[0]
    before = (device.memory_stats() or {})["bytes_in_use"]
    engine = Engine(**{**SMALL, "kv_cache_memory_bytes": 2**30, "max_num_seqs": 128})
    engine.generate("Hello", SamplingParams(temperature=0), use_tqdm=False)
    during = (device.memory_stats() or {})["bytes_in_use"]
    engine.close()
    after = (device.memory_stats() or {})["bytes_in_use"]
    assert during > before + 10 * 2**20
    assert after <= before + 2**20


@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="needs the GPU for itself")
def test_by_default_weights_and_pool_fill_nine_tenths_of_the_gpu(llama_folder: Path) -> None:
    """In a process where nothing has used JAX before, as in a program of a user's."""
    code = f"""
import os
from quire import Engine
options = {{"load_format": "dummy", "skip_tokenizer_init": True, "enforce_eager": True}}
options |= {{"hf_overrides": {{"max_position_embeddings": 131072}}, "use_tqdm_on_load": False}}
with Engine({str(llama_folder)!r}, max_num_seqs=512, **options) as engine:
    import jax
    parts = engine._running
    pool = sum(x.nbytes for x in jax.tree.leaves(parts.replicas[0].runner.executor.state))
    limit = jax.devices()[0].memory_stats()["bytes_limit"]
    total = limit / float(os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"])
    print((pool + parts.spec.weight_bytes) / total)
    engine.generate([[5, 3, 9]], use_tqdm=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.9 <= float(done.stdout) < 0.93
