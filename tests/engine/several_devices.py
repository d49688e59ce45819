"""Run in a process whose CPU is eight devices: prints what engines of several sizes generate.

    python -m tests.engine.several_devices FOLDER

FOLDER is for what it writes. Prints one JSON dict: for each group of cases a list of dicts with a
`name` and a `size`, the number of devices, and what was found.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from quire import Engine, LoRARequest, OptionError, SamplingParams
from quire.engine.buckets import Auxiliary, Encoding, Program
from tests.engine.test_adapters import make_adapter
from tests.engine.vision_models import Cases, SoundCases
from tests.models.square_models import SquareModel

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
MODELS = FIXTURES / "models"
TEXT = {path.name: (2, 4) for path in sorted(MODELS.iterdir())}
"""Models of four query heads and one, two or four KV heads, and their sizes."""
ADAPTED = {
    "llama2": (1, 2),
    "llama3": (1, 4),
    "mistral": (1, 4),
    "opt_350m": (1, 2),
    "phi3": (1, 4),
    "qwen3": (1, 4),
}
WIDE = {"wide8": (1, 2, 4, 8), "wide2": (1, 8), "wide1": (1, 8)}
"""Random weights, with so many KV heads for sixteen query heads."""
WIDE_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "num_attention_heads": 16,
    "num_hidden_layers": 2,
    "vocab_size": 101,
}
"""A vocabulary that no size divides."""
SQUARES = {
    "llava_onevision": ("one", "video"),
    "llava_next_video": ("several", "video"),
    "llava_next": ("one",),
}
VISION = {"llava": ("one", "two"), "phi3_v": ("one",), "qwen2_vl": ("one", "two")}
SOUNDS = {"qwen2_audio": ("one", "two"), "ultravox": ("one", "two")}
MEDIA = {name: (2,) for name in [*VISION, *SQUARES, *SOUNDS]} | {"llava": (2, 4)}
"""Their towers have two heads, which four devices do not share out."""
PROMPTS = [[5, 3, 9, 4], [7] * 40, [1, 2, 3]]
OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 2**22,
    "max_num_batched_tokens": 64,
    "max_num_seqs": 2,
    "skip_tokenizer_init": True,
    "use_tqdm_on_load": False,
}
GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1, seed=3, logprobs=2, presence_penalty=0.5, max_tokens=6)
Found = dict[str, Any]


def text(folder: Path) -> Iterator[Found]:
    """Both prompts of each fixture."""
    for name, sizes in TEXT.items():
        expected = np.load(MODELS / name / "expected.npz")
        prompts = [expected[f"prompt_{i}"].tolist() for i in range(2)]
        limit = int(expected["max_model_len"]) or None
        for size in sizes:
            with engine(MODELS / name, size, max_model_len=limit) as made:
                yield found(made, name, tokens=tokens(made, prompts))


def wide(folder: Path) -> Iterator[Found]:
    """Random weights, prompts in chunks."""
    for name, sizes in WIDE.items():
        config = WIDE_CONFIG | {"num_key_value_heads": int(name.removeprefix("wide"))}
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        options = {"load_format": "dummy", "max_num_batched_tokens": 32, "max_num_seqs": 4}
        for size in sizes:
            with engine(folder / name, size, **options) as made:
                yield found(made, name, tokens=tokens(made, PROMPTS))


def weights(folder: Path) -> Iterator[Found]:
    """Sampled tokens, new weights, and weights that were saved, also of copies."""
    saved = folder / "saved"
    for name, size in (("llama3", 1), ("llama3", 2), ("qwen2", 1), ("qwen2", 4)):
        with engine(MODELS / name, size) as made:
            cases = found(made, name, tokens=tokens(made, PROMPTS))
            cases["sampled"] = tokens(made, PROMPTS, SAMPLED)
            if size == 4:
                made.save(saved)
            made.update_params({path: np.asarray(array) for path, array in made.params.items()})
            cases["again"] = tokens(made, PROMPTS)
            yield cases
    for size in (1, 4):
        with engine(saved, size) as made:
            yield found(made, "saved qwen2", tokens=tokens(made, PROMPTS))


def meshes(folder: Path) -> Iterator[Found]:
    """Meshes that are given: of other axes and types, of other devices, of one device, unfit."""
    devices = np.array(jax.devices())
    given = {
        "explicit": jax.make_mesh((1, 2), ("data", "tensor")),
        "others": Mesh(devices[4:8], ("tensor",)),
        "one": Mesh(devices[3:4], ("tensor",)),
    }
    for name, mesh in given.items():
        with engine(MODELS / "llama3", 1, mesh=mesh) as made:
            cases = found(made, name, tokens=tokens(made, PROMPTS))
            own = made._running.spec.specs
            backwards = Mesh(np.flip(mesh.devices), mesh.axis_names)
            places = {"as own": (mesh, own), "otherwise": (mesh, {}), "backwards": (backwards, own)}
            for kind, place in places.items():
                given = doubled(made.params, *place)
                made.update_params(given)
                cases[kind] = {
                    "tokens": tokens(made, PROMPTS),
                    "taken": [made.params[path] is array for path, array in given.items()],
                    # an array keeps what the host has read of it
                    "read": [array._npy_value is not None for array in given.values()],  # pyright: ignore
                }
            yield cases
    unfit = {"two axes": Mesh(devices[:4].reshape(2, 2), ("model", "tensor"))}
    unfit["three"] = Mesh(devices[:3], ("tensor",))
    for name, mesh in unfit.items():
        try:
            engine(MODELS / "llama3", 1, mesh=mesh)
        except OptionError as error:
            yield {"name": name, "size": mesh.size, "error": str(error)}


def doubled(
    params: dict[str, jax.Array], mesh: Mesh, specs: dict[str, PartitionSpec]
) -> dict[str, jax.Array]:
    """Others on a mesh: cut by `specs`, or along the last axis."""
    made: dict[str, jax.Array] = {}
    for path, array in params.items():
        last = PartitionSpec(*(None,) * (array.ndim - 1), "tensor")
        place = NamedSharding(mesh, specs.get(path, last))
        made[path] = jax.device_put(2 * np.asarray(array), place)
    return made


def adapters(folder: Path) -> Iterator[Found]:
    """Prompts with each of the model's fixture adapters, with one made up, and with none."""
    for name, sizes in ADAPTED.items():
        made_up = make_adapter(folder / "adapters" / name, name, 8)
        fixtures = [
            LoRARequest(path.name, number, str(path))
            for number, path in enumerate(sorted((FIXTURES / "lora").iterdir()), start=100)
            if np.load(path / "expected.npz")["model"] == name
        ]
        asked = [None, *fixtures, made_up]
        prompts = [PROMPTS[0]] * len(asked)
        options = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8, "max_num_seqs": 4}
        for size in sizes:
            with engine(MODELS / name, size, **options) as made:
                adapted = tokens(made, prompts, lora_request=asked)
                arrays = (made._running.replicas[0].runner.executor.adapters or {}).values()
                cut = [array.addressable_shards[0].data.size < array.size for array in arrays]
                yield found(made, name, tokens=adapted, cut=cut)


def media(folder: Path) -> Iterator[Found]:
    """Some of the prompts of each model that sees or hears."""
    for name, sizes in MEDIA.items():
        model, options, prompts = _media_prompts(name)
        for size in sizes:
            with engine(model, size, **options) as made:
                cut = {
                    path: array.addressable_shards[0].data.size < array.size
                    for path, array in made.params.items()
                    if path.startswith(("vision.layers.0", "audio.layers.0", "projector"))
                }
                yield found(made, name, tokens=tokens(made, prompts), cut=cut)


def _media_prompts(name: str) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """The model's folder, options for it, and prompts."""
    if name in SQUARES:
        model = SquareModel(name)
        prompts = [
            {
                "prompt_token_ids": model.expected[f"{prompt}/prompt"].tolist(),
                "multi_modal_data": {k: given for k, given in model.media(prompt).items() if given},
            }
            for prompt in SQUARES[name]
        ]
        return model.folder, {"max_model_len": 512}, prompts
    cases = SoundCases(name) if name in SOUNDS else Cases(name)
    names = (VISION | SOUNDS)[name]
    length = 1024 if name == "phi3_v" else 64
    options = {**cases.options, "max_num_batched_tokens": length}
    return cases.folder, options, [cases.prompt(prompt) for prompt in names]


def engine(folder: Path, size: int, **options: Any) -> Engine:
    """An engine of so many devices."""
    return Engine(folder, tensor_parallel_size=size, **(OPTIONS | options))


def tokens(
    made: Engine, prompts: Any, params: SamplingParams = GREEDY, **options: Any
) -> list[list[int]]:
    outputs = made.generate(prompts, params, use_tqdm=False, **options)
    return [list(output.outputs[0].token_ids) for output in outputs]


def found(made: Engine, name: str, **results: Any) -> Found:
    """Results, how the pool lies, and what the programs gather and add up among devices."""
    running = made._running
    running.programs.wait()
    pool = jax.tree.leaves(running.replicas[0].runner.executor.state.cache)
    return {
        "name": name,
        "size": running.spec.devices,
        "devices": sorted({device.id for array in pool for device in array.sharding.device_set}),
        "heads": [array.addressable_shards[0].data.shape[2] for array in pool],
        "programs": [_exchanged(*one) for one in running.programs._ready.items()],
        **results,
    }


def _exchanged(key: object, program: Any) -> Found:
    """Of one program, the types of what it gathers, and how often it adds up."""
    text = program.as_text()
    moved = re.findall(r"= (\S+) (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
    match key:
        case Program():
            kind = "decode" if key.decode else "mixed"
        case Encoding():
            kind = "encode"
        case _:
            kind = "write adapter" if key is Auxiliary.WRITE_ADAPTER else "other"
    return {
        "kind": kind,
        "adapters": getattr(key, "adapters", False),
        "moved": [one.split("{")[0] for one in moved],
        "sums": len(re.findall(r" all-reduce(?:-start)?\(", text)),
    }


GROUPS = {f.__name__: f for f in (text, wide, weights, meshes, adapters, media)}

if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    groups = {name: GROUPS[name] for name in names or GROUPS}
    print(json.dumps({name: list(cases(Path(folder))) for name, cases in groups.items()}))
