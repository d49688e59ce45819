"""One of several processes that run engines together, or one that runs them alone.

    python -m tests.engine.several_processes FOLDER PROCESSES NUMBER PORT [--endless]

The first prints one JSON dict of what its engines found. FOLDER is for what it writes. With
--endless it prints a line and generates until something ends it; the others print what ended them.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quire import Engine, EngineClosedError, SamplingParams, StructuredOutputsParams
from tests.engine.several_devices import GREEDY, MODELS, OPTIONS, PROMPTS, SAMPLED, tokens
from tests.engine.test_adapters import make_adapter
from tests.engine.vision_models import Cases

DEVICES = 2
"""Of all processes together."""
VISION = Cases("llava")
Found = Iterator[tuple[str, Any]]


def text(engine: Engine, folder: Path) -> Found:
    yield "greedy", tokens(engine, PROMPTS)
    yield "sampled", tokens(engine, PROMPTS, SAMPLED)
    biased = SamplingParams(temperature=0, max_tokens=6, logit_bias={7: 3.0}, logprobs=-1)
    yield "biased", tokens(engine, PROMPTS, biased)
    asked = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=1)
    [output] = engine.generate([PROMPTS[0]], asked, use_tqdm=False)
    told = [list(one.values()) for one in output.prompt_logprobs or [] if one]
    yield "prompt", [[round(each.logprob, 3) for each in one] for one in told]


def adapters(engine: Engine, folder: Path) -> Found:
    made_up = make_adapter(folder / "adapter", "llama3", 8)
    yield "adapters", tokens(engine, PROMPTS, lora_request=[None, made_up, made_up])


def pictures(engine: Engine, folder: Path) -> Found:
    yield "pictures", tokens(engine, [VISION.prompt(name) for name in ("one", "two")])


def demo(engine: Engine, folder: Path) -> Found:
    """A grammar, which writes masks, with the model that has a tokenizer."""
    choice = StructuredOutputsParams(choice=["yes", "perhaps"])
    asked = SamplingParams(temperature=0, max_tokens=8, structured_outputs=choice)
    [output] = engine.generate("Is it so?", asked, use_tqdm=False)
    yield "grammar", output.outputs[0].text


ENGINES: list[tuple[Any, Any, dict[str, Any]]] = [
    (text, MODELS / "llama3", {}),
    (adapters, MODELS / "llama3", {"enable_lora": True, "max_lora_rank": 8}),
    (pictures, VISION.folder, {**VISION.options, "max_num_batched_tokens": 64}),
    (demo, None, {"skip_tokenizer_init": False, "max_model_len": 64}),
]


def run(shared: dict[str, Any], folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for ask, model, options in ENGINES:
        with Engine(model, **(OPTIONS | shared | options)) as engine:
            if engine.leads:
                found |= dict(ask(engine, folder))
            else:
                engine.follow()
    return found


def generate_on(shared: dict[str, Any]) -> None:
    with Engine(MODELS / "llama3", **(OPTIONS | shared)) as engine:
        try:
            if not engine.leads:
                engine.follow()
            print("going", flush=True)
            while True:
                engine.generate(PROMPTS, GREEDY, use_tqdm=False)
        except EngineClosedError as error:
            print(error, flush=True)


def main() -> None:
    folder, processes, number, port = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    shared: dict[str, Any] = {"tensor_parallel_size": DEVICES}
    if processes > 1:
        shared |= {"coordinator_address": f"127.0.0.1:{port}", "num_processes": processes}
        shared |= {"process_id": number}
    if "--endless" in sys.argv:
        generate_on(shared)
    elif found := run(shared, folder):
        print(json.dumps(found))


if __name__ == "__main__":
    main()
