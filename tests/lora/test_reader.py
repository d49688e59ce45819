"""Adapters that do not fit, by name, and names in all the ways they were ever written."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from tests.lora.conftest import contents

from quire.lora.adapter import Adapter
from quire.lora.config import read_config
from quire.lora.errors import AdapterError
from quire.lora.mapping import BaseModel, describe
from quire.lora.reader import read_adapter
from quire.models.checkpoint_map import Piece

PREFIX = "base_model.model.model.layers.0.self_attn"
Q_A, Q_B = f"{PREFIX}.q_proj.lora_A.weight", f"{PREFIX}.q_proj.lora_B.weight"
EMBED = "base_model.model.model.embed_tokens"
HEAD = "base_model.model.lm_head"
SHAPES = {"embed.weight": (12, 6), "layers.0.qkv": (2, 4, 3, 6), "layers.0.norm": (6,)}
EVERY = slice(None)

Tensors = dict[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape) + sum(shape)).standard_normal(shape, np.float32)


@pytest.fixture
def base() -> BaseModel:
    """One attention layer with fused weights, and a head tied to the embedding."""
    pieces = [
        Piece("model.embed_tokens.weight", "embed.weight"),
        Piece("model.layers.0.norm.weight", "layers.0.norm"),
        Piece("model.layers.0.self_attn.q_proj.weight", "layers.0.qkv", (EVERY, slice(2))),
        Piece("model.layers.0.self_attn.k_proj.weight", "layers.0.qkv", (EVERY, 2)),
        Piece("model.layers.0.self_attn.v_proj.weight", "layers.0.qkv", (EVERY, 3)),
    ]
    params = {name: normal(*shape) for name, shape in SHAPES.items()}
    return describe("org/tiny", pieces, params, tied=True)


@pytest.fixture
def read(base: BaseModel) -> Callable[..., Adapter]:
    """Reads an adapter of rank 2 on q_proj, with other `tensors` or config `fields`."""

    def read(
        tensors: Tensors | None = None,
        *,
        base: BaseModel = base,
        max_rank: int = 8,
        **fields: Any,
    ) -> Adapter:
        config = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], **fields}
        tensors = {Q_A: normal(2, 6), Q_B: normal(12, 2)} if tensors is None else tensors
        return read_adapter("sql", read_config(config), tensors, base, max_rank=max_rank)

    return read


def test_scale_is_in_b(read: Callable[..., Adapter]) -> None:
    adapter = read(lora_alpha=8)
    (part,) = adapter.parts["layers.0.qkv"]
    assert part.index == (EVERY, slice(2))
    assert np.array_equal(part.b, 4 * normal(12, 2).reshape(2, 2, 3, 2))
    assert np.array_equal(part.a, normal(2, 6))
    assert (adapter.name, adapter.rank) == ("sql", 2)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace(".weight", ".sql.weight"),
        lambda name: name.replace(".weight", ""),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: f"module.{name}",
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: name.replace(".self_attn", "._fsdp_wrapped_module.self_attn"),
    ],
)
def test_names_of_tensors(rename: Callable[[str], str], read: Callable[..., Adapter]) -> None:
    tensors = {rename(Q_A): normal(2, 6), rename(Q_B): normal(12, 2)}
    assert contents(read(tensors)) == contents(read())


def test_order_and_ways_to_name_targets_say_nothing(read: Callable[..., Adapter]) -> None:
    same = read({Q_B: normal(12, 2), Q_A: normal(2, 6)}, target_modules=r".*\.q_proj")
    assert contents(same) == contents(read())


def test_parts_are_views(read: Callable[..., Adapter]) -> None:
    tensors = {Q_A: normal(2, 6), Q_B: normal(12, 2)}
    (part,) = read(tensors).parts["layers.0.qkv"]
    assert np.shares_memory(part.down, tensors[Q_A])
    assert np.shares_memory(part.up, tensors[Q_B])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_any_float_becomes_float32(dtype: Any, read: Callable[..., Adapter]) -> None:
    (part,) = read({Q_A: np.ones((2, 6), dtype), Q_B: np.ones((12, 2), dtype)}).parts[
        "layers.0.qkv"
    ]
    assert part.a.dtype == part.b.dtype == np.float32


@pytest.mark.parametrize(
    ("tensors", "fields", "text"),
    [
        (
            {Q_A: normal(2, 7), Q_B: normal(12, 2)},
            {},
            r"wrong shapes \(1\): .*lora_A.weight is \[2, 7\], the model needs \[2, 6\]",
        ),
        ({Q_A: normal(2, 6), Q_B: normal(13, 2)}, {}, r"is \[13, 2\], the model needs \[12, 2\]"),
        ({Q_A: normal(4, 6), Q_B: normal(12, 4)}, {}, r"wrong shapes \(2\)"),
        ({Q_A: normal(2), Q_B: normal(12, 2)}, {}, r"is \[2\], the model needs"),
        ({Q_A: normal(2, 6)}, {}, r"without the other of their pair .*q_proj.lora_A.weight \(no B"),
        ({Q_B: normal(12, 2)}, {}, r"q_proj.lora_B.weight \(no A"),
        (
            {Q_A: np.ones((2, 6), np.int8), Q_B: normal(12, 2)},
            {},
            "types that are no floats .* is int8",
        ),
        (
            None,
            {"target_modules": ["q_proj", "w1"]},
            r"target_modules that match nothing in the model \(1\): w1",
        ),
        (None, {"target_modules": r"w\d"}, r"match nothing in the model \(1\): w\\d"),
        (
            None,
            {"target_modules": ["q_proj", "k_proj"]},
            r"targets, but that have no tensors \(1\): model.layers.0.self_attn.k_proj",
        ),
        (
            None,
            {"target_modules": ["k_proj"]},
            r"tensors, but are no target of the config \(1\): model.layers.0.self_attn.q_proj",
        ),
        (None, {"exclude_modules": ["q_proj"]}, "are no target of the config"),
        ({}, {"target_modules": None}, "nothing to apply"),
        (
            {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": normal(2, 6)},
            {},
            r"no module that the model has and an adapter can change \(1\): .*layers.9",
        ),
        ({f"{PREFIX}.q_proj.lora_magnitude_vector": normal(12)}, {}, "lora_magnitude_vector"),
        ({f"{PREFIX}.q_proj.lora_B.bias": normal(12)}, {}, "lora_B.bias"),
        ({"base_model.model.model.layers.0.norm.weight": normal(6)}, {}, "norm.weight"),
        (
            {Q_A: normal(2, 6), Q_A.replace(".weight", ".default.weight"): normal(2, 6)},
            {},
            "two tensors for the same place",
        ),
    ],
)
def test_refused(
    tensors: Tensors | None, fields: dict[str, Any], text: str, read: Callable[..., Adapter]
) -> None:
    with pytest.raises(AdapterError, match=text) as error:
        read(tensors, **fields)
    assert str(error.value).startswith("The adapter 'sql' does not fit the model")


def test_rank_above_the_maximum(read: Callable[..., Adapter]) -> None:
    assert read(max_rank=2).rank == 2
    with pytest.raises(AdapterError, match=r"ranks above max_lora_rank=1; .*: 2 at model.layers"):
        read(max_rank=1)


def test_targets_not_said_are_what_has_tensors(read: Callable[..., Adapter]) -> None:
    assert contents(read(target_modules=None)) == contents(read())


@pytest.mark.parametrize("names", [(".lora_embedding_A", ".lora_embedding_B"), (".lora_A.weight",)])
def test_embedding(names: tuple[str, ...], read: Callable[..., Adapter]) -> None:
    """Some tools name an embedding's tensors like a linear layer's."""
    a, b = f"{EMBED}{names[0]}", f"{EMBED}{names[0].replace('_A', '_B')}"
    adapter = read({a: normal(2, 12), b: normal(6, 2)}, target_modules=["embed_tokens"])
    (part,) = adapter.parts["embed.weight"]
    assert np.array_equal(part.a, normal(6, 2).T)
    assert np.array_equal(part.b, normal(2, 12).T * 4)


def test_rows_of_added_tokens_are_left_out_with_a_warning(
    base: BaseModel, read: Callable[..., Adapter], caplog: pytest.LogCaptureFixture
) -> None:
    weight = base.params["embed.weight"]
    tensors = {
        f"{EMBED}.lora_embedding_A": normal(2, 14),
        f"{EMBED}.lora_embedding_B": normal(6, 2),
        f"{EMBED}.base_layer.weight": np.concatenate([weight, normal(2, 6)]),
        f"{HEAD}.lora_A.weight": normal(2, 6),
        f"{HEAD}.lora_B.weight": normal(14, 2),
    }
    adapter = read(tensors, target_modules=["embed_tokens", "lm_head"])
    assert adapter.parts["embed.weight"][0].b.shape == (12, 2)
    assert np.array_equal(adapter.parts["head.weight"][0].b, 4 * normal(14, 2)[:12])
    assert "has 14 tokens at lm_head, the model 12" in caplog.text


def test_fewer_tokens_than_the_model_do_not_fit(read: Callable[..., Adapter]) -> None:
    tensors = {
        f"{EMBED}.lora_embedding_A": normal(2, 11),
        f"{EMBED}.lora_embedding_B": normal(6, 2),
    }
    with pytest.raises(AdapterError, match=r"is \[2, 11\], the model needs \[2, 12\]"):
        read(tensors, target_modules=["embed_tokens"])


@pytest.mark.parametrize("name", [f"{HEAD}.base_layer.weight", f"{EMBED}.weight"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_copies_of_the_models_weights_must_be_equal(
    name: str, dtype: Any, base: BaseModel, read: Callable[..., Adapter]
) -> None:
    tensors = {Q_A: normal(2, 6), Q_B: normal(12, 2)}
    copy = base.params["embed.weight"].astype(dtype)
    assert contents(read({**tensors, name: copy})) == contents(read())
    trained = np.array(copy)
    trained[3, 2] += 0.25
    with pytest.raises(AdapterError, match=r"weights trained in full.*" + name):
        read({**tensors, name: trained})


def test_a_copy_needs_the_models_weights(base: BaseModel, read: Callable[..., Adapter]) -> None:
    shapes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in SHAPES.items()}
    bare = BaseModel(base.name, base.modules, shapes, base.canonical, base.tied)
    assert contents(read(base=bare)) == contents(read())
    tensors = {Q_A: normal(2, 6), Q_B: normal(12, 2), f"{EMBED}.weight": normal(12, 6)}
    with pytest.raises(AdapterError, match="cannot be compared"):
        read(tensors, base=bare)


@pytest.mark.parametrize(
    ("name", "warns"),
    [
        ("org/tiny", False),
        ("/models/tiny/", False),
        ("other/tiny", False),
        ("", False),
        ("org/large", True),
    ],
)
def test_another_base_is_a_warning(
    name: str, warns: bool, read: Callable[..., Adapter], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read(base_model_name_or_path=name)
    assert (f"was made for '{name}'" in caplog.text) == warns


def test_base_in_the_cache_of_the_hub(
    base: BaseModel, read: Callable[..., Adapter], caplog: pytest.LogCaptureFixture
) -> None:
    folder = "/cache/models--org--tiny/snapshots/0123"
    cached = BaseModel(folder, base.modules, base.params, base.canonical, base.tied)
    read(base=cached, base_model_name_or_path="org/tiny")
    assert caplog.text == ""
