"""Adapters in a running engine, against the same engine with the adapter in its weights."""

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quire import AdapterError, AsyncEngine, Engine, LoRARequest, OptionError, SamplingParams
from quire.engine.checkpoint.safetensors_file import open_safetensors
from quire.engine.outputs import RequestOutput
from quire.lora.adapter import merged
from quire.lora.config import read_config
from quire.lora.reader import read_adapter
from tests.lora.conftest import FIXTURES, load_model
from tests.lora_folders import save_adapter

MODELS = ["llama3", "mistral", "opt", "opt_350m", "phi3", "qwen2", "qwen3"]
"""One of each architecture, and a tied one."""
SMALL: dict[str, Any] = {
    "dtype": "float32",
    "skip_tokenizer_init": True,
    "enforce_eager": True,
    "use_tqdm_on_load": False,
    "kv_cache_memory_bytes": 2**25,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
}
TARGETS = {
    4: ("q_proj", "qkv_proj", "v_proj", "fc1"),
    8: ("embed_tokens", "lm_head", "o_proj", "out_proj", "down_proj"),
    64: ("k_proj", "gate_proj", "up_proj", "gate_up_proj", "fc2", "q_proj"),
}
"""Modules of adapters by their rank; each model has some of them."""
GREEDY = SamplingParams(
    temperature=0, max_tokens=12, ignore_eos=True, logprobs=0, prompt_logprobs=0
)


def make_adapter(folder: Path, model: str, rank: int, seed: int = 0) -> LoRARequest:
    """A folder as PEFT saves one, with random updates of the modules in TARGETS."""
    rng = np.random.default_rng([seed, rank])
    base = load_model(model).base
    ends = {name.rpartition(".")[2] for name in base.modules} & set(TARGETS[rank])
    tensors: dict[str, np.ndarray] = {}
    for name, module in base.modules.items():
        if name.rpartition(".")[2] not in ends:
            continue
        a = rng.normal(0, module.in_size**-0.5, (rank, module.in_size)).astype(np.float32)
        b = rng.normal(0, 0.2, (module.out_size, rank)).astype(np.float32)
        if module.kind == "embedding":
            sides = {"lora_embedding_A": b.T.copy(), "lora_embedding_B": a.T.copy()}
        else:
            sides = {"lora_A.weight": a, "lora_B.weight": b}
        tensors |= {f"base_model.model.{name}.{side}": array for side, array in sides.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(folder, tensors, rank, sorted(ends))
    return LoRARequest(f"rank {rank}, seed {seed}", 1000 * seed + rank, str(folder))


def with_merged(model: str, request: LoRARequest) -> dict[str, Any]:
    """The parameters of the model with an adapter in its weights."""
    folder = Path(request.path)
    stored = open_safetensors(folder / "adapter_model.safetensors")
    tensors = {name: tensor.array for name, tensor in stored.items()}
    fields = json.loads((folder / "adapter_config.json").read_text())
    reference = load_model(model)
    adapter = read_adapter("x", read_config(fields), tensors, reference.base, max_rank=64)
    return merged(reference.params, adapter)


def logprobs(output: RequestOutput) -> list[float]:
    """Of the prompt's tokens but the first, then of the output's."""
    prompt = zip(output.prompt_token_ids[1:], (output.prompt_logprobs or [])[1:], strict=True)
    [one] = output.outputs
    made = zip(one.token_ids, one.logprobs or [], strict=True)
    return [(entry or {})[token].logprob for token, entry in [*prompt, *made]]


def expected(model: str, params: dict[str, Any], output: RequestOutput) -> np.ndarray:
    """What `logprobs` should be, by the causal form of the model."""
    tokens = [*output.prompt_token_ids, *output.outputs[0].token_ids]
    scores = load_model(model).logits(params, np.array(tokens))[:-1].astype(np.float64)
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    return scores[np.arange(len(tokens) - 1), tokens[1:]]


@pytest.mark.parametrize("model", MODELS)
def test_a_mixed_batch_is_what_merged_weights_give(model: str, tmp_path: Path) -> None:
    asked = [None, *(make_adapter(tmp_path / str(rank), model, rank) for rank in TARGETS)]
    asked = [*asked, asked[2], asked[0]]
    vocab = load_model(model).config.vocab_size
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, vocab, size).tolist() for size in (5, 21, 40, 9, 40, 33)]
    options = {**SMALL, "enable_lora": True, "max_loras": 3, "max_lora_rank": 64}
    with Engine(FIXTURES / "models" / model, **options) as engine:
        outputs = engine.generate(prompts, GREEDY, lora_request=asked, use_tqdm=False)
    plain = load_model(model).params
    effects = []
    for request, output in zip(asked, outputs, strict=True):
        params = plain if request is None else with_merged(model, request)
        np.testing.assert_allclose(logprobs(output), expected(model, params, output), atol=1e-3)
        assert output.lora_request == output.outputs[0].lora_request == request
        if request is not None:
            effects.append(np.abs(expected(model, plain, output) - logprobs(output)).max())
    assert min(effects) > 0.05


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[LoRARequest]:
    """Four of one model."""
    folder = tmp_path_factory.mktemp("adapters")
    return [make_adapter(folder / str(seed), "llama3", 8, seed) for seed in range(1, 5)]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(
        FIXTURES / "models" / "llama3", enable_lora=True, max_loras=2, max_cpu_loras=2, **SMALL
    ) as made:
        yield made


def tokens_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


PROMPT = list(range(5, 45))


def test_more_adapters_than_slots_take_turns(engine: Engine, adapters: list[LoRARequest]) -> None:
    asked = [*adapters, None] * 3
    alone = [tokens_of(engine.generate([PROMPT], GREEDY, lora_request=one)) for one in asked[:5]]
    together = engine.generate([PROMPT] * 15, GREEDY, lora_request=asked, use_tqdm=False)
    assert tokens_of(together) == [tokens for [tokens] in alone] * 3
    assert len({tuple(tokens) for [tokens] in alone}) == 5
    assert engine.list_loras() == {one.id for one in adapters}


def test_beams_streams_and_chats_take_adapters(engine: Engine, adapters: list[LoRARequest]) -> None:
    from quire import BeamSearchParams

    params = BeamSearchParams(beam_width=2, max_tokens=4)
    base, adapted = (
        engine.beam_search([PROMPT], params, lora_request=one)[0] for one in (None, adapters[0])
    )
    assert base.outputs[0].token_ids != adapted.outputs[0].token_ids
    assert adapted.lora_request == adapted.outputs[0].lora_request == adapters[0]
    [whole] = tokens_of(engine.generate([PROMPT], GREEDY, lora_request=adapters[0]))
    pieces = engine.stream([PROMPT], GREEDY, lora_request=adapters[0])
    assert [token for piece in pieces for token in piece.outputs[0].token_ids] == whole


def test_pages_are_shared_within_an_adapter_alone(
    engine: Engine, adapters: list[LoRARequest]
) -> None:
    engine.reset_prefix_cache()
    params = SamplingParams(temperature=0, max_tokens=2)

    def cached(request: LoRARequest | None) -> int:
        return engine.generate([PROMPT], params, lora_request=request)[0].num_cached_tokens

    first, second = adapters[:2]
    assert [cached(one) for one in (first, first, second, None, None)] == [0, 32, 0, 0, 32]
    assert engine.remove_lora(first.id)
    assert [cached(one) for one in (first, second)] == [0, 32]


def test_new_files_under_an_old_name_are_not_confused(engine: Engine, tmp_path: Path) -> None:
    old = make_adapter(tmp_path / "x", "llama3", 8, seed=21)
    [before] = engine.generate([PROMPT], GREEDY, lora_request=old)
    make_adapter(tmp_path / "x", "llama3", 8, seed=22)
    [same] = engine.generate([PROMPT], GREEDY, lora_request=old)
    again = LoRARequest(old.name, old.id, old.path, load_inplace=True)
    [after] = engine.generate([PROMPT], GREEDY, lora_request=again)
    assert tokens_of([before]) == tokens_of([same]) != tokens_of([after])
    assert after.num_cached_tokens == 0
    for output, seed in ((before, 21), (after, 22)):
        request = make_adapter(tmp_path / str(seed), "llama3", 8, seed)
        params = with_merged("llama3", request)
        np.testing.assert_allclose(logprobs(output), expected("llama3", params, output), atol=1e-3)


def test_mistakes_are_told_and_the_engine_serves_on(
    engine: Engine, adapters: list[LoRARequest], tmp_path: Path
) -> None:
    too_high = make_adapter(tmp_path / "64", "llama3", 64)
    missing = LoRARequest("missing", 77, str(tmp_path / "nothing"))
    engine.add_lora(adapters[0])
    wrong: list[tuple[Any, type[Exception], str]] = [
        ("sql", OptionError, "LoRARequest"),
        ([adapters[0]] * 2, OptionError, "2 entries for 1 prompts"),
        (too_high, AdapterError, "max_lora_rank=16"),
        (missing, AdapterError, "nothing"),
        (LoRARequest("other", adapters[0].id, "x"), OptionError, "lora_int_id"),
    ]
    for request, error, told in wrong:
        with pytest.raises(error, match=told):
            engine.generate([PROMPT], GREEDY, lora_request=request)
    assert engine.stats().num_running == engine.stats().num_waiting == 0
    assert engine.generate([PROMPT], GREEDY, lora_request=adapters[0])
    assert not engine.remove_lora(123456)
    with (
        Engine(FIXTURES / "models" / "llama3", **SMALL) as plain,
        pytest.raises(OptionError, match="enable_lora=True"),
    ):
        plain.generate([PROMPT], GREEDY, lora_request=adapters[0])


def test_nothing_compiles_for_new_adapters(adapters: list[LoRARequest]) -> None:
    options = {**SMALL, "enforce_eager": False, "max_num_seqs": 1, "max_num_batched_tokens": 32}
    with Engine(FIXTURES / "models" / "llama3", enable_lora=True, **options) as engine:
        engine.wait_until_ready()
        compiled = engine.stats().programs_compiled
        for request in (*adapters, None):
            engine.generate([PROMPT], GREEDY, lora_request=request, use_tqdm=False)
        assert engine.stats().programs_compiled == compiled


def test_a_batch_without_adapters_runs_the_programs_without(
    adapters: list[LoRARequest],
) -> None:
    with Engine(FIXTURES / "models" / "llama3", enable_lora=True, **SMALL) as engine:
        engine.generate([PROMPT], GREEDY, use_tqdm=False)
        programs = engine._running.programs._ready
        assert not any(getattr(program, "adapters", False) for program in programs)
        engine.generate([PROMPT], GREEDY, lora_request=adapters[0], use_tqdm=False)
        assert any(getattr(program, "adapters", False) for program in programs)


def test_deterministic_engines_take_adapters(adapters: list[LoRARequest]) -> None:
    with Engine(
        FIXTURES / "models" / "llama3", enable_lora=True, deterministic=True, **SMALL
    ) as engine:
        alone = engine.generate([PROMPT], GREEDY, lora_request=adapters[0])
        mixed = engine.generate(
            [PROMPT, PROMPT[:7]], GREEDY, lora_request=[adapters[0], None], use_tqdm=False
        )
        assert logprobs(alone[0]) == logprobs(mixed[0])


def test_adapters_come_and_go_among_many_requests(adapters: list[LoRARequest]) -> None:
    """Loads, uses, aborts and removes in random order: no stale output, nothing left behind."""
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)

    async def walk(engine: AsyncEngine, seed: int) -> list[tuple[int, list[int]]]:
        rng, found = random.Random(seed), []
        for _ in range(25):
            index = rng.randrange(len(adapters))
            match rng.randrange(8):
                case 0:
                    await engine.remove_lora(adapters[index].id)
                case 1:
                    await engine.add_lora(adapters[index])
                case 2:
                    async for _ in engine.generate(PROMPT, params, lora_request=adapters[index]):
                        break
                case _:
                    generator = engine.generate(PROMPT, params, lora_request=adapters[index])
                    outputs = [output async for output in generator]
                    found.append((index, outputs[-1].outputs[0].token_ids))
        return found

    async def run() -> list[tuple[int, list[int]]]:
        options = {**SMALL, "kv_cache_memory_bytes": 2**18}
        async with AsyncEngine(
            FIXTURES / "models" / "llama3", enable_lora=True, max_loras=2, **options
        ) as engine:
            walks = await asyncio.gather(*(walk(engine, seed) for seed in range(6)))
            for request in adapters:
                await engine.remove_lora(request.id)
            while engine.stats().num_running or engine.stats().pages_in_use:
                await asyncio.sleep(0.01)
            running = engine._engine._running
            running.replicas[0].scheduler.check_integrity()
            assert await engine.list_loras() == set()
            return [result for found in walks for result in found]

    with Engine(FIXTURES / "models" / "llama3", enable_lora=True, **SMALL) as engine:
        want = [
            tokens_of(engine.generate([PROMPT], params, lora_request=one))[0] for one in adapters
        ]
    for index, tokens in asyncio.run(run()):
        assert tokens == want[index]
