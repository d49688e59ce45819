"""The engine as its users see it, on a tiny model."""

import gc
import signal
import threading
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest

import quire
from quire import LLM, Engine, RequestOutputKind, SamplingParams
from quire.errors import EngineClosedError, MemoryBudgetError, OptionError, PromptError
from tests.engine.conftest import SMALL, poison_pool

PROMPTS = ["The capital of France is", "Hello, my name is", "One", "two words and more of them"]
GREEDY = SamplingParams(temperature=0, max_tokens=12)


def texts(outputs: list[quire.RequestOutput]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def tokens(outputs: list[quire.RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_llm_is_engine() -> None:
    assert LLM is Engine


def test_outputs_come_in_order_whatever_the_form_of_the_prompt(engine: Engine) -> None:
    together = engine.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert [output.prompt for output in together] == PROMPTS
    alone = [engine.generate(prompt, GREEDY, use_tqdm=False)[0] for prompt in PROMPTS]
    assert tokens(together) == tokens(alone)
    ids = [output.prompt_token_ids for output in together]
    assert tokens(engine.generate(ids, GREEDY, use_tqdm=False)) == tokens(together)
    dicts = [{"prompt": PROMPTS[0]}, {"prompt_token_ids": ids[1]}]
    assert tokens(engine.generate(dicts, GREEDY, use_tqdm=False)) == tokens(together)[:2]


def test_parameters_may_be_given_one_each(engine: Engine) -> None:
    each = [SamplingParams(temperature=0, max_tokens=n) for n in (1, 5, 9, 2)]
    outputs = engine.generate(PROMPTS, each, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 5, 9, 2]
    with pytest.raises(OptionError, match="sampling_params has 3 entries for 4 prompts"):
        engine.generate(PROMPTS, each[:3])


def test_a_seed_gives_the_same_tokens_alone_and_in_a_crowd(engine: Engine) -> None:
    params = SamplingParams(temperature=0.9, top_p=0.9, seed=11, max_tokens=12)
    alone = engine.generate(PROMPTS[0], params, use_tqdm=False)
    others = SamplingParams(temperature=1.2, top_k=20, presence_penalty=1, max_tokens=20)
    crowd = engine.generate([*PROMPTS[1:] * 3, PROMPTS[0]], [others] * 9 + [params], use_tqdm=False)
    assert tokens(crowd)[-1] == tokens(alone)[0]


def test_several_outputs_share_their_prompt(engine: Engine) -> None:
    engine.reset_prefix_cache()
    before = engine.stats()
    prompt = list(range(1, 50))
    params = SamplingParams(temperature=1, n=3, seed=5, max_tokens=8)
    [output] = engine.generate([prompt], params, use_tqdm=False)
    assert [one.index for one in output.outputs] == [0, 1, 2]
    assert len({tuple(one.token_ids) for one in output.outputs}) > 1
    hits = engine.stats().prefix_cache_hit_tokens - before.prefix_cache_hit_tokens
    assert hits == 2 * 48  # three full pages, for the second and the third output


def test_recycled_pages_may_hold_nan(engine: Engine) -> None:
    """Whatever a page held before, and what padding wrote to the null page, nobody reads it."""
    prompts = [[5] * 3, [7, 3, 9] * 20, list(range(1, 40))]
    engine.reset_prefix_cache()
    before = tokens(engine.generate(prompts, GREEDY, use_tqdm=False))
    engine.reset_prefix_cache()
    poison_pool(engine)
    assert tokens(engine.generate(prompts, GREEDY, use_tqdm=False)) == before


def test_a_cached_prefix_changes_nothing(engine: Engine) -> None:
    engine.reset_prefix_cache()
    prompt = [7, 3, 9] * 20
    cold = engine.generate([prompt], GREEDY, use_tqdm=False)
    warm = engine.generate([prompt], GREEDY, use_tqdm=False)
    assert (cold[0].num_cached_tokens, warm[0].num_cached_tokens) == (0, 48)
    assert tokens(cold) == tokens(warm)
    salted = engine.generate({"prompt_token_ids": prompt, "cache_salt": "x"}, GREEDY)
    assert salted[0].num_cached_tokens == 0
    assert tokens(salted) == tokens(cold)


def test_a_prompt_in_chunks_is_the_prompt_whole(engine: Engine, model_folder: Path) -> None:
    prompts = [list(np.random.default_rng(n).integers(1, 200, 150)) for n in range(3)]
    options = {**SMALL, "max_num_batched_tokens": 32, "enable_prefix_caching": False}
    with Engine(model_folder, enforce_eager=True, **options) as chunked:
        assert tokens(chunked.generate(prompts, GREEDY)) == tokens(engine.generate(prompts, GREEDY))


def test_preemption_changes_nothing(engine: Engine, model_folder: Path) -> None:
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=60, ignore_eos=True)
    prompts = [[n + 1] * 40 for n in range(8)]
    bytes_per_page = 16 * 2 * 2 * 2 * 8 * 4
    options = {**SMALL, "kv_cache_memory_bytes": bytes_per_page * 24}
    with Engine(model_folder, enforce_eager=True, **options) as small:
        squeezed = small.generate(prompts, params, use_tqdm=False)
        assert small.stats().num_preemptions > 0
        assert small.stats().pages_in_use == 0
    assert tokens(squeezed) == tokens(engine.generate(prompts, params, use_tqdm=False))


def test_streamed_is_whole(engine: Engine) -> None:
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=20)
    whole = engine.generate(PROMPTS, params, use_tqdm=False)
    pieces: dict[str, list[quire.RequestOutput]] = {}
    for piece in engine.stream(PROMPTS, params):
        pieces.setdefault(piece.request_id, []).append(piece)
    streamed = [pieces[key] for key in sorted(pieces, key=int)]
    assert ["".join(p.outputs[0].text for p in line) for line in streamed] == texts(whole)
    assert [sum((p.outputs[0].token_ids for p in line), []) for line in streamed] == tokens(whole)
    assert all(line[-1].finished and not line[0].finished for line in streamed)


def test_leaving_a_stream_aborts_it(engine: Engine) -> None:
    stream = engine.stream(PROMPTS, SamplingParams(max_tokens=100, ignore_eos=True))
    next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert engine.stats().num_running == engine.stats().pages_in_use == 0
    assert len(tokens(engine.generate("on", GREEDY, use_tqdm=False))[0]) == 12


@pytest.mark.parametrize(
    ("prompt", "params", "error", "message"),
    [
        ("", GREEDY, PromptError, "the prompt is empty"),
        ([1] * 256, GREEDY, PromptError, "has 256 tokens, but max_model_len=256"),
        ([10**6], GREEDY, PromptError, "token id 1000000 is out of range"),
        ([[1], []], GREEDY, PromptError, r"prompts\[1\]: the prompt is empty"),
        ([1], SamplingParams(stop_token_ids=[10**6]), OptionError, "must be 0 to"),
        ([1], SamplingParams(logprobs=21), OptionError, "at most 20"),
        ([1], "hot", OptionError, "sampling_params='hot'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    engine: Engine, prompt: object, params: object, error: type[Exception], message: str
) -> None:
    steps = engine.stats().num_steps
    with pytest.raises(error, match=message):
        engine.generate(prompt, params, use_tqdm=False)  # pyright: ignore[reportArgumentType]
    assert engine.stats().num_steps == steps
    assert engine.stats().num_waiting == 0


def test_stop_strings_end_the_text_before_them(engine: Engine) -> None:
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    [whole] = engine.generate(PROMPTS[0], params, use_tqdm=False)
    text = whole.outputs[0].text
    stop = text[8:11]
    cut = text[: text.index(stop)]
    params.stop = [stop]
    [stopped] = engine.generate(PROMPTS[0], params, use_tqdm=False)
    assert stopped.outputs[0].text == cut
    assert (stopped.outputs[0].finish_reason, stopped.outputs[0].stop_reason) == ("stop", stop)
    params.include_stop_str_in_output = True
    assert texts(engine.generate(PROMPTS[0], params, use_tqdm=False)) == [cut + stop]


def test_stop_tokens_and_min_tokens(engine: Engine) -> None:
    free = engine.generate(PROMPTS[0], SamplingParams(temperature=0, ignore_eos=True))
    third = tokens(free)[0][2]
    first = tokens(free)[0].index(third)
    stopping = SamplingParams(temperature=0, stop_token_ids=[third], ignore_eos=True)
    [output] = engine.generate(PROMPTS[0], stopping)
    assert (len(output.outputs[0].token_ids), output.outputs[0].stop_reason) == (first + 1, third)
    later = SamplingParams(temperature=0, stop_token_ids=[third], ignore_eos=True, min_tokens=8)
    [output] = engine.generate(PROMPTS[0], later)
    assert third not in output.outputs[0].token_ids[:8]
    assert len(output.outputs[0].token_ids) >= 8


def test_tokens_can_be_allowed_favoured_and_forbidden(engine: Engine) -> None:
    only = SamplingParams(temperature=1, seed=0, allowed_token_ids=[65, 66], ignore_eos=True)
    assert set(tokens(engine.generate(PROMPTS, only))[0]) <= {65, 66}
    biased = SamplingParams(temperature=1, seed=0, logit_bias={77: 100})
    assert set(tokens(engine.generate(PROMPTS, biased))[0]) == {77}
    # The slots just biased serve plain requests beside one that needs the tables.
    expected = tokens(engine.generate(PROMPTS, GREEDY))
    for other in (
        SamplingParams(temperature=0, max_tokens=12, logprobs=0),
        SamplingParams(temperature=0, max_tokens=12, logit_bias={77: 100}),
        SamplingParams(temperature=0, max_tokens=12, presence_penalty=1),
    ):
        plain = tokens(engine.generate(PROMPTS, [GREEDY, GREEDY, GREEDY, other]))
        assert plain[:3] == expected[:3]


def test_bad_words_of_several_tokens_never_appear(engine: Engine) -> None:
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    text = texts(engine.generate(PROMPTS[1], params))[0]
    words = [text[3:8], text[12:15]]
    banned = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, bad_words=words)
    outputs = engine.generate([PROMPTS[1], PROMPTS[0]], [banned, params])
    ids = outputs[0].outputs[0].token_ids
    tokenizer = engine.get_tokenizer()
    for word in words:
        for spelling in (word.lstrip(), " " + word.lstrip()):
            banned_ids = tokenizer.encode(spelling, add_special_tokens=False)
            width = len(banned_ids)
            assert all(ids[i : i + width] != banned_ids for i in range(len(ids)))
    assert texts(outputs)[1] == texts(engine.generate(PROMPTS[0], params))[0]


def test_penalties_survive_preemption_and_count_output(engine: Engine) -> None:
    params = SamplingParams(temperature=0, max_tokens=40, frequency_penalty=2, ignore_eos=True)
    plain = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    [penalized] = tokens(engine.generate(PROMPTS[2], params))
    [repeating] = tokens(engine.generate(PROMPTS[2], plain))
    assert len(set(penalized)) > len(set(repeating))


def test_logprobs(engine: Engine, model_folder: Path) -> None:
    prompt = list(range(3, 40))
    [few] = engine.generate([prompt], SamplingParams(temperature=0, logprobs=3, prompt_logprobs=2))
    one = few.outputs[0]
    assert one.logprobs is not None
    assert few.prompt_logprobs is not None
    assert one.cumulative_logprob == pytest.approx(
        sum(entry[token].logprob for entry, token in zip(one.logprobs, one.token_ids, strict=True))
    )
    assert all(len(entry) == 3 for entry in one.logprobs)  # greedy: the token is one of the three
    assert few.prompt_logprobs[0] is None
    entries = zip(prompt[1:], few.prompt_logprobs[1:], strict=True)
    assert all(token in (entry or {}) for token, entry in entries)
    with Engine(model_folder, enforce_eager=True, max_logprobs=-1, **SMALL) as unlimited:
        everything = SamplingParams(temperature=0, logprobs=-1, prompt_logprobs=-1, max_tokens=3)
        [all_of_them] = unlimited.generate([prompt], everything)
        vocab = unlimited.params["embed.weight"].shape[0]
    assert all_of_them.outputs[0].logprobs is not None
    assert all_of_them.prompt_logprobs is not None
    for whole, part in [
        (all_of_them.outputs[0].logprobs[0], one.logprobs[0]),
        (all_of_them.prompt_logprobs[5], few.prompt_logprobs[5]),
    ]:
        assert whole is not None
        assert part is not None
        assert len(whole) == vocab
        assert np.logaddexp.reduce([e.logprob for e in whole.values()]) == pytest.approx(
            0, abs=1e-5
        )
        for token, entry in part.items():
            assert whole[token].logprob == pytest.approx(entry.logprob, abs=1e-4)
            assert whole[token].rank == entry.rank


def test_without_a_tokenizer_ids_go_in_and_out(model_folder: Path) -> None:
    with Engine(model_folder, skip_tokenizer_init=True, enforce_eager=True, **SMALL) as engine:
        [output] = engine.generate([[5, 6, 7]], GREEDY)
        assert (output.prompt, output.outputs[0].text) == (None, "")
        assert len(output.outputs[0].token_ids) == 12
        with pytest.raises(PromptError, match="skip_tokenizer_init=True"):
            engine.generate("text", GREEDY)


def test_new_weights_take_effect_and_empty_the_prefix_cache(model_folder: Path) -> None:
    with Engine(model_folder, enforce_eager=True, **SMALL) as engine:
        prompt = [9, 8, 7] * 12
        before = tokens(engine.generate([prompt], GREEDY))
        old = dict(engine.params)
        engine.update_params({**old, "embed.weight": old["embed.weight"][::-1]})
        [output] = engine.generate([prompt], GREEDY)
        assert output.num_cached_tokens == 0
        assert tokens([output]) != before
        engine.update_params(old)
        assert tokens(engine.generate([prompt], GREEDY)) == before
        with pytest.raises(quire.CheckpointError, match="do not match the model in 2 places"):
            engine.update_params(
                {**old, "norm.weight": old["norm.weight"][:3], "extra": old["norm.weight"]}
            )


def test_saved_and_loaded_again_it_is_the_same(engine: Engine, tmp_path: Path) -> None:
    engine.save(tmp_path / "saved")
    with Engine(tmp_path / "saved", enforce_eager=True, **SMALL) as loaded:
        assert tokens(loaded.generate(PROMPTS, GREEDY)) == tokens(engine.generate(PROMPTS, GREEDY))


def test_dummy_weights_need_only_a_config(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model_folder / "config.json").read_text())
    options = {"load_format": "dummy", "skip_tokenizer_init": True, "enforce_eager": True, **SMALL}
    with Engine(tmp_path, **options) as engine:
        assert len(tokens(engine.generate([[1, 2]], GREEDY))[0]) == 12


def test_ctrl_c_leaves_the_engine_usable(engine: Engine) -> None:
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    endless = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS * 50, endless, use_tqdm=False)
    assert engine.stats().num_running == engine.stats().num_waiting == 0
    assert len(tokens(engine.generate("on", GREEDY, use_tqdm=False))[0]) == 12
    assert engine.stats().pages_in_use == 0


def test_close_frees_the_device_and_refuses_work(model_folder: Path) -> None:
    engine = Engine(model_folder, enforce_eager=True, **SMALL)
    arrays = list(engine.params.values())
    engine.generate("a", GREEDY, use_tqdm=False)
    engine.close()
    engine.close()
    assert all(array.is_deleted() for array in arrays)
    with pytest.raises(EngineClosedError, match="was closed"):
        engine.generate("a", GREEDY)


def test_garbage_collection_frees_the_device(model_folder: Path) -> None:
    engine = Engine(model_folder, enforce_eager=True, **SMALL)
    array = next(iter(engine.params.values()))
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    assert array.is_deleted()


def test_a_pool_too_small_for_one_sequence_is_refused(model_folder: Path) -> None:
    with pytest.raises(MemoryBudgetError, match=r"one sequence of max_model_len=256 needs 17"):
        Engine(model_folder, **{**SMALL, "kv_cache_memory_bytes": 10_000})


def test_calls_from_several_threads_share_the_device(engine: Engine) -> None:
    expected = tokens(engine.generate(PROMPTS, GREEDY, use_tqdm=False))
    found: dict[int, list[int]] = {}

    def call(number: int) -> None:
        found[number] = tokens(engine.generate(PROMPTS[number], GREEDY, use_tqdm=False))[0]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(4)] == expected


def test_nothing_compiles_after_the_start(model_folder: Path) -> None:
    """All planned programs are there once it is ready; mixed traffic compiles not one more."""
    options = {**SMALL, "max_num_seqs": 4}
    with Engine(model_folder, compilation_cache_dir=None, **options) as engine:
        assert engine.wait_until_ready(300)
        events: list[str] = []

        def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
            if "backend_compile" in event:
                events.append(event)

        jax.monitoring.register_event_duration_secs_listener(listen)
        compiled = engine.stats().programs_compiled
        rng = np.random.default_rng(0)
        kinds = [
            GREEDY,
            SamplingParams(temperature=1, top_p=0.5, n=2),
            SamplingParams(temperature=1, presence_penalty=1, logprobs=2, prompt_logprobs=1),
            SamplingParams(min_tokens=3, stop_token_ids=[5], bad_words=["a b", "c"]),
        ]
        prompts = [list(rng.integers(1, 200, rng.integers(1, 200))) for _ in range(12)]
        engine.generate(prompts, kinds * 3, use_tqdm=False)
        assert engine.stats().programs_compiled == compiled
        assert events == []


def test_output_kind_is_for_streams_and_generate_returns_the_end(engine: Engine) -> None:
    params = SamplingParams(temperature=0, output_kind=RequestOutputKind.DELTA, max_tokens=5)
    [output] = engine.generate("One", params, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 5
