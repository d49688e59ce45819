"""Run in a process whose CPU is several devices: prints what engines of several sizes generate.

    python several_devices.py CASES

CASES is JSON: a list of [folder, sizes, options, whole]. Prints a JSON list of one dict a case and
size: greedy tokens of some prompts, how the pool lies, and what the programs of the step gather;
for a `whole` case also sampled tokens, and greedy ones after the weights were put back.
"""

import json
import re
import sys
from typing import Any

import jax

from quire import Engine, SamplingParams
from quire.engine.buckets import Variant

PROMPTS = [[5, 3, 9, 4], [7] * 40, [1, 2, 3]]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1, seed=3, logprobs=2, presence_penalty=0.5, max_tokens=6)
OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 64,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 32,
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "use_tqdm_on_load": False,
}


def measured(folder: str, size: int, options: dict[str, Any], whole: bool) -> dict[str, Any]:
    with Engine(folder, tensor_parallel_size=size, **(OPTIONS | options)) as engine:
        found: dict[str, Any] = {"greedy": tokens(engine, GREEDY)}
        if whole:
            engine.update_params(dict(engine.params))
            found |= {"again": tokens(engine, GREEDY), "sampled": tokens(engine, SAMPLED)}
        found |= {
            "pool": [len(x.sharding.device_set) for x in jax.tree.leaves(pool(engine))],
            "heads": [x.addressable_shards[0].data.shape[2] for x in jax.tree.leaves(pool(engine))],
            "gathered": gathered(engine),
        }
    return {"folder": folder, "size": size, **found}


def pool(engine: Engine) -> Any:
    return engine._running.runner._state.cache


def tokens(engine: Engine, params: SamplingParams) -> list[list[int]]:
    outputs = engine.generate(PROMPTS, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def gathered(engine: Engine) -> list[str]:
    """The types of what the programs gather from all devices."""
    programs = engine._running.runner.programs
    buckets = engine._running.runner._config.buckets
    keys = buckets.decode(4, variant=Variant.GREEDY), buckets.mixed(32, variant=Variant.GREEDY)
    text = "".join(programs.exactly(key).as_text() for key in keys)  # type: ignore[attr-defined]
    return re.findall(r"= (\S+) all-gather", text)


if __name__ == "__main__":
    cases = json.loads(sys.argv[1])
    print(json.dumps([measured(f, n, o, w) for f, sizes, o, w in cases for n in sizes]))
