"""What `deterministic=True` promises, as a check that tests on a CPU and on a GPU share."""

import itertools
import random

from quire import Engine, SamplingParams

Result = tuple[list[int], list[float]]


def _request(rng: random.Random, vocab_size: int, longest: int) -> tuple[list[int], SamplingParams]:
    shared = [rng.randrange(10, 20) for _ in range(rng.choice([0, 48]))]
    own = [rng.randrange(10, vocab_size) for _ in range(rng.randrange(1, longest - 48))]
    return shared + own, SamplingParams(
        temperature=rng.choice([0.0, 0.7, 1.1]),
        top_p=rng.choice([1.0, 0.9]),
        top_k=rng.choice([0, 10]),
        presence_penalty=rng.choice([0.0, 0.5]),
        seed=rng.randrange(1000),
        max_tokens=rng.randrange(1, 12),
        logprobs=0,
        ignore_eos=True,
    )


def _results(engine: Engine, requests: list[tuple[list[int], SamplingParams]]) -> list[Result]:
    prompts, params = zip(*requests, strict=True)
    outputs = engine.generate(list(prompts), list(params), use_tqdm=False)
    return [
        (
            o.token_ids,
            [entry[t].logprob for t, entry in zip(o.token_ids, o.logprobs or [], strict=True)],
        )
        for o in (output.outputs[0] for output in outputs)
    ]


def check_mixes(engine: Engine, mixes: int, vocab_size: int, longest: int = 150) -> None:
    """Each of `mixes` random batches gives what its requests give alone, to the last bit.

    Prompts longer than the engine's step are cut into other chunks in a crowd; a part of them
    begins alike; the prefix cache is emptied now and then.
    """
    rng = random.Random(0)
    pool = [_request(rng, vocab_size, longest) for _ in range(24)]
    alone = [_results(engine, [request])[0] for request in pool]
    for number in range(mixes):
        if number % 3 == 0:
            engine.reset_prefix_cache()
        chosen = rng.sample(range(len(pool)), rng.randrange(2, 9))
        found = _results(engine, [pool[index] for index in chosen])
        assert found == [alone[index] for index in chosen], f"mix {number}: {chosen}"
    assert len(set(itertools.chain.from_iterable(tokens for tokens, _ in alone))) > 20
