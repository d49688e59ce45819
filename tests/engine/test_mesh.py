"""A model shared out among devices: the CPU of another process, split into eight."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from quire import Engine, model_info
from quire.errors import OptionError
from quire.models import functional
from quire.models.layers import RMSNorm
from quire.models.shards import TENSOR
from tests.engine.eight_devices import printed
from tests.engine.several_devices import (
    ADAPTED,
    FIXTURES,
    MEDIA,
    MODELS,
    SOUNDS,
    SQUARES,
    TEXT,
    VISION,
    WIDE,
)
from tests.once import once

ROOT = Path(__file__).resolve().parents[2]


def several(cases: dict[str, tuple[int, ...]]) -> list[tuple[str, int]]:
    """Names and sizes, but for one device."""
    return [(name, size) for name, sizes in cases.items() for size in sizes if size > 1]


ALL = [
    (group, name, size)
    for group, cases in {"text": TEXT, "wide": WIDE, "adapters": ADAPTED, "media": MEDIA}.items()
    for name, size in several(cases)
]


class Groups(dict[str, dict[tuple[str, int], dict[str, Any]]]):
    """What `several_devices` finds, by group, name and number of devices; run group by group."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self.factory = factory

    def __missing__(self, group: str) -> dict[tuple[str, int], dict[str, Any]]:
        cases = once(self.factory, f"several-{group}", lambda: self._run(group))
        self[group] = {(one["name"], one["size"]): one for one in cases}
        return self[group]

    def _run(self, group: str) -> list[dict[str, Any]]:
        folder = self.factory.mktemp(group)
        return printed("tests.engine.several_devices", str(folder), group)[group]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Groups:
    return Groups(tmp_path_factory)


@pytest.mark.parametrize(("name", "size"), several(TEXT))
def test_tokens_are_the_reference_s(found: Groups, name: str, size: int) -> None:
    """Those of `transformers`, which are those of one device, too."""
    expected = np.load(MODELS / name / "expected.npz")
    greedy = [expected[f"greedy_{i}"][:16].tolist() for i in range(2)]
    assert found["text"][name, size]["tokens"] == greedy


@pytest.mark.parametrize(("name", "size"), several(WIDE))
def test_random_weights_are_those_of_one_device(found: Groups, name: str, size: int) -> None:
    assert found["wide"][name, size]["tokens"] == found["wide"][name, 1]["tokens"]


@pytest.mark.parametrize(("name", "size"), [("llama3", 2), ("qwen2", 4)])
def test_sampled_tokens_and_new_weights(found: Groups, name: str, size: int) -> None:
    one, more = found["weights"][name, 1], found["weights"][name, size]
    assert more["sampled"] == one["sampled"]
    assert more["again"] == more["tokens"] == one["tokens"]


@pytest.mark.parametrize("size", [1, 4])
def test_copies_are_saved_once(found: Groups, size: int) -> None:
    """So that any number of devices loads them."""
    saved = found["weights"]["saved qwen2", size]
    assert saved["tokens"] == found["weights"]["qwen2", 1]["tokens"]
    assert set(saved["heads"]) == {2 if size == 1 else 1}


@pytest.mark.parametrize(("name", "size"), several(ADAPTED))
def test_adapters_are_those_of_one_device(found: Groups, name: str, size: int) -> None:
    """The same prompt without an adapter and with each."""
    one, more = found["adapters"][name, 1], found["adapters"][name, size]
    assert more["tokens"] == one["tokens"]
    assert any(tokens != one["tokens"][0] for tokens in one["tokens"])


@pytest.mark.parametrize(("name", "size"), several(ADAPTED))
def test_half_of_the_arrays_of_adapters_is_cut(found: Groups, name: str, size: int) -> None:
    """A or B of each weight, but for the two projections of OPT-350M, which are whole."""
    cut = found["adapters"][name, size]["cut"]
    whole = 4 if name == "opt_350m" else 0
    assert cut.count(True) * 2 == len(cut) - whole


@pytest.mark.parametrize(("name", "size"), several(MEDIA))
def test_media_are_seen_and_heard(found: Groups, name: str, size: int) -> None:
    folder = FIXTURES / ("audio" if name in SOUNDS else "vision") / name
    expected = np.load(folder / "expected.npz")
    greedy = [expected[f"{prompt}/greedy"][:16].tolist() for prompt in prompts_of(name)]
    assert found["media"][name, size]["tokens"] == greedy


def prompts_of(name: str) -> tuple[str, ...]:
    return {**VISION, **SQUARES, **SOUNDS}[name]


@pytest.mark.parametrize(("name", "size"), several(MEDIA))
def test_towers_are_cut_where_their_heads_are(found: Groups, name: str, size: int) -> None:
    cut = found["media"][name, size]["cut"]
    layer = [path for path in cut if "layers.0" in path]
    products = [path for path in layer if re.search(r"qkv$|(out|up|down)\.weight$", path)]
    assert len(products) == 4
    assert {cut[path] for path in products} == {size == 2}
    assert not any(cut[path] for path in layer if "norm" in path)


@pytest.mark.parametrize(("group", "name", "size"), ALL)
def test_every_device_has_its_heads_of_the_pool(
    found: Groups, group: str, name: str, size: int
) -> None:
    """Of four heads or eight, its share, and of fewer than devices one."""
    case = found[group][name, size]
    assert case["devices"] == list(range(size))
    many = {"wide8": 8, "llama2": 4, "opt": 4, "opt_350m": 4, "opt_plain": 4}
    assert set(case["heads"]) == {max(many.get(name, 2) // size, 1)}


@pytest.mark.parametrize(("group", "name", "size"), ALL)
def test_nothing_but_logits_is_gathered(found: Groups, group: str, name: str, size: int) -> None:
    """Weights, pages and features stay where they are; an adapter is when it is loaded."""
    for program in found[group][name, size]["programs"]:
        if program["kind"] in ("decode", "mixed"):
            logits = [
                moved for moved in program["moved"] if re.fullmatch(r"f32\[[124],\d+\]", moved)
            ]
            assert program["moved"] == logits
            assert len(logits) <= 1
        elif program["kind"] == "encode":
            assert not program["moved"]


def test_one_device_exchanges_nothing(found: Groups) -> None:
    groups = [found[name] for name in ("wide", "weights", "adapters")]
    alone = [case for cases in groups for (_, size), case in cases.items() if size == 1]
    assert len(alone) > 10
    programs = [program for case in alone for program in case["programs"]]
    assert not any(program["moved"] or program["sums"] for program in programs)


@pytest.mark.parametrize(("name", "size"), several(ADAPTED))
def test_adapters_take_no_sums_of_their_own(found: Groups, name: str, size: int) -> None:
    """Two a layer, and that of the embedding."""
    programs = found["adapters"][name, size]["programs"]
    steps = [program for program in programs if program["kind"] in ("decode", "mixed")]
    assert all(program["adapters"] for program in steps)
    assert {program["sums"] for program in steps} == {5}
    [text] = {program["sums"] for program in found["text"][name, size]["programs"]}
    assert text == 5


MESHES = {"explicit": [0, 1], "others": [4, 5, 6, 7], "one": [3]}


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_that_is_given(found: Groups, name: str) -> None:
    devices = MESHES[name]
    case, one = found["meshes"][name, len(devices)], found["meshes"]["one", 1]
    assert case["devices"] == devices
    assert case["tokens"] == found["weights"]["llama3", 1]["tokens"]
    for kind in ("as own", "otherwise", "backwards"):
        assert case[kind]["tokens"] == one[kind]["tokens"] != case["tokens"]


@pytest.mark.parametrize("name", MESHES)
def test_weights_on_a_mesh_never_pass_through_the_host(found: Groups, name: str) -> None:
    case = found["meshes"][name, len(MESHES[name])]
    assert all(case["as own"]["taken"])
    assert all(case["otherwise"]["taken"]) == (name == "one")
    for kind in ("as own", "otherwise", "backwards"):
        assert not any(case[kind]["read"])


def test_meshes_that_are_not_fit(found: Groups) -> None:
    meshes = found["meshes"]
    assert "axes {'model': 2, 'tensor': 2}; it must have" in meshes["two axes", 4]["error"]
    assert re.search(r"mesh of 3 devices .* It may be 1, 2, 4\.", meshes["three", 3]["error"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mesh": "tensor"}, r"mesh='tensor' is a str; it must be a jax.sharding.Mesh"),
        (
            {"mesh": Mesh(jax.devices()[:1], ("x",))},
            r"axes \{'x': 1\}; it must have one .*'tensor'",
        ),
        (
            {"mesh": Mesh(jax.devices()[:1], ("tensor",)), "tensor_parallel_size": 2},
            r"tensor_parallel_size=2, but the mesh has 1 devices",
        ),
        ({"tensor_parallel_size": 2}, r"tensor_parallel_size=2, but JAX sees 1 cpu device"),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Engine(str(MODELS / "llama3"), skip_tokenizer_init=True, **options)


SIZES = {
    "32 query heads, 8 KV heads and 14336": (32, 8, 14336, "1, 2, 4, 8, 16, 32"),
    "28 query heads, 4 KV heads and 18944": (28, 4, 18944, "1, 2, 4"),
    "14 query heads, 2 KV heads and 4864": (14, 2, 4864, "1, 2"),
    "12 query heads, 2 KV heads and 8960": (12, 2, 8960, "1, 2, 4"),
    "40 query heads, 10 KV heads and 17920": (40, 10, 17920, "1, 2, 5, 10, 20, 40"),
    "71 query heads, 1 KV heads and 71": (71, 1, 71, "1, 71"),
}
"""Heads, KV heads and columns of known models, and by how many devices they are shared out."""


@pytest.mark.parametrize("shown", SIZES)
def test_sizes_that_are_allowed_are_listed(tmp_path: Path, shown: str) -> None:
    heads, kv_heads, columns, allowed = SIZES[shown]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8 * heads,
        "intermediate_size": columns,
        "max_position_embeddings": 64,
        "num_attention_heads": heads,
        "num_hidden_layers": 1,
        "num_key_value_heads": kv_heads,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(OptionError, match=f"=3 .* {shown} columns.* may be {allowed}\\."):
        model_info(str(tmp_path), load_format="dummy", tensor_parallel_size=3)


@pytest.mark.parametrize("folder", [*TEXT, *MEDIA])
def test_every_architecture_lists_its_sizes(folder: str) -> None:
    """Three divides the columns of most of their MLPs."""
    [path] = [
        path
        for kind in ("models", "vision", "audio")
        if (path := FIXTURES / kind / folder).is_dir()
    ]
    allowed = "1, 2" if folder == "qwen2_vl" else "1, 2, 4"
    with pytest.raises(OptionError, match=f"tensor_parallel_size=3 .* may be {allowed}\\."):
        model_info(str(path), tensor_parallel_size=3)


def test_a_norm_of_parts_is_that_of_the_whole() -> None:
    norm = RMSNorm(8, 1e-5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graphdef, _ = functional.split(norm)
    x, w = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)

    def part(x: jax.Array, w: jax.Array) -> jax.Array:
        return functional.bind(graphdef, {"weight": w})(x)

    halves = jax.vmap(part, axis_name=TENSOR)(x.reshape(2, 4), w.reshape(2, 4))
    np.testing.assert_allclose(halves.reshape(-1), part(x, w), rtol=1e-6)


def test_a_process_may_end_while_tokens_are_on_their_way() -> None:
    """The step behind the last token is still running then."""
    code = """
from quire import Engine
engine = Engine("demo", tensor_parallel_size=2, enforce_eager=True, use_tqdm_on_load=False)
for _ in range(2):
    engine.generate("The capital of France is", use_tqdm=False)
print("done")
"""
    flag = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command, env = [sys.executable, "-c", code], os.environ | flag
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize("index", [0, 1])
def test_the_commands_of_the_page(index: int) -> None:
    page = ROOT / "docs" / "several_devices.md"
    commands = re.findall(r"^```sh\n(.*)\n```", page.read_text(), re.MULTILINE)
    assert len(commands) == 2
    parts = shlex.split(commands[index])
    start = parts.index("quire")
    code = "import sys; from quire.entrypoints.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *parts[start + 1 :]],
        env=os.environ | dict(part.split("=", 1) for part in parts[:start]),
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    assert "Paris" in done.stdout
