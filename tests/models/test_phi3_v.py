"""Phi-3-vision against what `scripts/make_phi3_v_fixtures.py` computed."""

import copy
import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from tests.models.conftest import (
    ROWS,
    PagedModel,
    ReferenceModel,
    encode,
    features_of,
    fill_params,
    forward,
    load_checkpoint,
    read_json,
)

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.models import functional
from quire.models.features import Features
from quire.models.phi3_v import Phi3V, Phi3VConfig, Phi3VEncoder
from quire.multimodal.phi3_v import Crops, Phi3VImages

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "vision" / "phi3_v"
EXPECTED = np.load(FOLDER / "expected.npz")
PICTURES = ("square", "wide", "tall", "tiny", "many")
PROMPTS = ("text", "one", "two", "long")
TOLERANCE = 1e-4
CHUNK = 160
"""Tokens of a row in one step: less than any picture has."""
VISION = "model.vision_embed_tokens"


@functools.cache
def load() -> ReferenceModel:
    hf = read_json(FOLDER / "config.json")
    config = Phi3VConfig.from_hf(hf, int(EXPECTED["max_model_len"]))
    return ReferenceModel(config, *load_checkpoint(Phi3V, config, FOLDER), ())


def encoder() -> Phi3VEncoder:
    return Phi3V.encoders(load().config)["image"]


@functools.cache
def crops(name: str) -> Crops:
    """A picture as the processor prepares it."""
    images = dataclasses.replace(
        Phi3VImages.from_hf(read_json(FOLDER / "preprocessor_config.json")),
        num_crops=int(EXPECTED[f"{name}/num_crops"]),
    )
    return images(Image.fromarray(EXPECTED[f"{name}/picture"]))


def encoded(names: tuple[str, ...], size: int) -> np.ndarray:
    """Rows of one run."""
    inputs = encoder().inputs([crops(name) for name in names], size)
    return np.asarray(encode(load().graphdef, load().params, inputs))


@functools.cache
def alone(name: str) -> np.ndarray:
    """Features of a picture."""
    picture = crops(name)
    return encoded((name,), len(picture.crops))[: encoder().num_tokens(picture)]


def shown(prompt: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of a prompt, rows of its pictures, and the row of each token."""
    tokens = EXPECTED[f"{prompt}/prompt"]
    rows = np.concatenate([np.zeros((1, 32)), *map(alone, EXPECTED[f"{prompt}/pictures"])])
    here = tokens == load().config.image_token
    assert here.sum() == len(rows) - 1
    return tokens, rows, np.where(here, np.cumsum(here), len(rows))


class PagedPictures(PagedModel):
    """Prompts with pictures over a pool full of NaN."""

    def fill(self, prompts: tuple[str, ...]) -> list[np.ndarray]:
        """Logits of the prompts, one a row, in chunks side by side."""
        tokens, rows, index = zip(*map(shown, prompts), strict=True)
        offsets = np.cumsum([0, *map(len, rows)])
        none = offsets[-1]
        moved = [
            np.where(i < len(r), i + offset, none)
            for i, r, offset in zip(index, rows, offsets, strict=False)
        ]
        logits = [[] for _ in prompts]
        for start in range(0, max(map(len, tokens)), CHUNK):
            part = slice(start, start + CHUNK)
            places = np.concatenate([row[part] for row in moved])
            places = np.pad(places, (0, ROWS * CHUNK - len(places)), constant_values=none)
            parts = [row[part] for row in tokens]
            out = self._run(parts, ROWS * CHUNK, features_of(np.concatenate(rows), places))
            for kept, made in zip(logits, out, strict=True):
                kept.append(made)
        return [np.concatenate(parts) for parts in logits]

    def _run(
        self, chunks: list[np.ndarray], size: int | None, features: Features | None
    ) -> list[np.ndarray]:
        missing = [np.zeros(0, int)] * (ROWS - len(chunks))
        batch, tokens = self._batch([*chunks, *missing], size)
        model = self.reference
        logits, self.cache = forward(
            model.graphdef, model.params, batch, self.cache, tokens, features
        )
        ends = np.cumsum([len(chunk) for chunk in chunks])
        return np.split(np.asarray(logits)[: ends[-1]], ends[:-1])

    def step(self, chunks: list[np.ndarray], size: int | None = None) -> list[np.ndarray]:
        return self._run(chunks, size, None)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_prepared_as_the_reference_does(name: str) -> None:
    picture = crops(name)
    assert picture.size == tuple(EXPECTED[f"{name}/size"])
    expected = EXPECTED[f"{name}/crops"]
    np.testing.assert_allclose(picture.crops[:, :, ::67, ::67], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PICTURES)
def test_tower_agrees(name: str) -> None:
    model = functional.bind(load().graphdef, load().params)
    made = jax.jit(model.vision)(jnp.asarray(crops(name).crops))
    assert np.abs(made[:, 1:][:, ::41] - EXPECTED[f"{name}/tower"]).max() < TOLERANCE


@pytest.mark.parametrize("name", PICTURES)
def test_features_agree(name: str) -> None:
    made, expected = alone(name), EXPECTED[f"{name}/features"]
    assert len(made) == len(expected) == crops(name).num_tokens
    assert np.abs(made[:, ::7] - expected).max() < TOLERANCE


@pytest.mark.parametrize("name", PROMPTS)
def test_whole_prompts_agree(name: str) -> None:
    tokens, rows, index = shown(name)
    features = None if name == "text" else features_of(rows, index)
    model, tokens = load(), jnp.asarray(tokens)
    logits, _ = forward(model.graphdef, model.params, None, None, tokens, features)
    kept = EXPECTED[f"{name}/kept"]
    assert np.abs(np.asarray(logits)[kept] - EXPECTED[f"{name}/logits"]).max() < TOLERANCE


def test_prompts_in_chunks_agree_and_go_on_alike() -> None:
    model = PagedPictures(load())
    output = []
    for name, logits in zip(PROMPTS, model.fill(PROMPTS), strict=True):
        kept = EXPECTED[f"{name}/kept"]
        assert np.abs(logits[kept] - EXPECTED[f"{name}/logits"]).max() < TOLERANCE
        output.append([int(logits[-1].argmax())])
    while len(output[0]) < 64:
        chunks = [np.asarray(tokens[-1:]) for tokens in output]
        for tokens, logits in zip(output, model.step(chunks), strict=True):
            tokens.append(int(logits[-1].argmax()))
    for name, tokens in zip(PROMPTS, output, strict=True):
        assert tokens == EXPECTED[f"{name}/greedy"].tolist()


@pytest.mark.parametrize("names", [("wide", "square", "tall"), ("tall", "wide", "wide", "square")])
def test_pictures_in_one_run_do_not_see_each_other_nor_the_padding(names: tuple[str, ...]) -> None:
    rows = encoded(names, 17)
    assert rows.shape == (encoder().num_rows(17), 32)
    assert np.isfinite(rows).all()
    start = 0
    for name in names:
        expected = alone(name)
        made = rows[start : start + len(expected)]
        np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5)
        start += len(expected)


def test_a_run_without_pictures_is_finite() -> None:
    assert np.isfinite(encoded((), 2)).all()


def test_bfloat16_is_near() -> None:
    model, picture = load(), crops("wide")
    params = {name: array.astype(jnp.bfloat16) for name, array in model.params.items()}
    arrays = encoder().inputs([picture], 3)
    rows = encode(model.graphdef, params, {name: jnp.asarray(a) for name, a in arrays.items()})
    assert rows.dtype == jnp.bfloat16
    error = np.asarray(rows[: picture.num_tokens], np.float32) - alone("wide")
    assert np.sqrt(np.mean(error**2)) < 0.03 * alone("wide").std()


@dataclasses.dataclass(frozen=True)
class Grid:
    """A picture whose crops are numbered."""

    rows: int
    columns: int
    side: int = 2

    @property
    def size(self) -> tuple[int, int]:
        return self.rows * self.side, self.columns * self.side

    @property
    def crops(self) -> np.ndarray:
        count = 1 + self.rows * self.columns
        shape = (3, self.side, self.side, count)
        return np.broadcast_to(np.arange(1.0, count + 1), shape).transpose(3, 0, 1, 2)


def test_order_of_features() -> None:
    """Features of crop n are 4n to 4n + 3; 20 ends a row, 21 is between the two versions."""
    made = Phi3VEncoder(side=2, along=2).inputs([Grid(1, 2), Grid(1, 1)], 5)
    first = [4, 5, 8, 9, 20, 6, 7, 10, 11, 20, 21, 0, 1, 20, 2, 3, 20]
    second = [16, 17, 20, 18, 19, 20, 21, 12, 13, 20, 14, 15, 20]
    padding = [20] * (5 * 6 + 2 - 30)
    assert made["order"].tolist() == first + second + padding
    assert made["crops"][:, 0, 0, 0].tolist() == [1, 2, 3, 1, 2]
    upright = Phi3VEncoder(side=2, along=2).inputs([Grid(2, 1)], 3)["order"]
    large = [4, 5, 12, 6, 7, 12, 8, 9, 12, 10, 11, 12]
    assert upright.tolist() == [*large, 13, 0, 1, 12, 2, 3, 12]


@pytest.mark.parametrize("size", range(2, 13))
def test_rows_suffice_for_any_pictures_and_no_fewer_would(size: int) -> None:
    made = Phi3VEncoder(336, 12)

    @functools.cache
    def most(crops: int) -> int:
        """Rows of pictures that have as many crops together, or one fewer."""
        shapes = itertools.product(range(1, crops), repeat=2)
        fitting = [Grid(*shape, side=336) for shape in shapes if shape[0] * shape[1] < crops]
        return max((made.num_tokens(g) + most(crops - made.units(g)) for g in fitting), default=0)

    assert made.num_rows(size) == most(size)


@pytest.mark.parametrize("size", [2, 7])
def test_shapes_depend_on_the_size_alone(size: int) -> None:
    made = Phi3VEncoder(side=2, along=2)
    for pictures in ([], [Grid(1, 1)]):
        inputs = made.inputs(pictures, size)
        shapes = {name: (array.shape, array.dtype) for name, array in inputs.items()}
        assert shapes == {name: (s.shape, s.dtype) for name, s in made.abstract(size).items()}


def test_pictures_that_do_not_fit() -> None:
    made = Phi3VEncoder(side=2, along=2)
    with pytest.raises(ValueError, match="run of 4 crops is asked for pictures of 5"):
        made.inputs([Grid(1, 2), Grid(1, 1)], 4)
    with pytest.raises(ValueError, match=r"4 x 2 pixels .*\(3, 3, 2, 2\).*takes \(9, 3, 1, 1\)"):
        Phi3VEncoder(side=1, along=2).inputs([Grid(2, 1)], 9)


def renamed(layout: str) -> dict[str, np.ndarray]:
    """The checkpoint by the names of other files."""
    tensors = load_file(FOLDER / "model.safetensors")
    tower = f"{VISION}.img_processor."
    if layout == "bare":
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    if layout == "new":
        return {n.replace(f"{tower}vision_model.", tower): t for n, t in tensors.items()}
    return tensors | {
        f"{VISION}.wte.weight": tensors["model.embed_tokens.weight"],
        f"{tower}vision_model.embeddings.position_ids": np.arange(577)[None],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
    }


@pytest.mark.parametrize("layout", ["bare", "new", "extras"])
def test_other_names_of_tensors(layout: str) -> None:
    config, params = load().config, load().params
    _, shapes, _ = functional.abstract(Phi3V, config, jnp.float32)
    tensors = renamed(layout)
    assert tensors.keys() != load_file(FOLDER / "model.safetensors").keys()
    made = fill_params(shapes, tensors, Phi3V.checkpoint_map(config))
    for name, array in params.items():
        np.testing.assert_array_equal(made[name], array)


def test_only_unused_tensors_are_ignored() -> None:
    found = Phi3V.checkpoint_map(load().config)
    layers = f"{VISION}.img_processor.vision_model.encoder.layers"
    assert found.is_ignored(f"{layers}.2.mlp.fc1.weight")
    assert not found.is_ignored(f"{layers}.1.mlp.fc1.weight")
    assert not found.is_ignored(f"{VISION}.img_projection.4.weight")


PUBLISHED = {
    "architectures": ["Phi3VForCausalLM"],
    "embd_layer": {
        "embedding_cls": "image",
        "hd_transform_order": "sub_glb",
        "projection_cls": "mlp",
        "use_hd_transform": True,
        "with_learnable_separator": True,
    },
    "hidden_act": "silu",
    "hidden_size": 3072,
    "img_processor": {
        "image_dim_out": 1024,
        "model_name": "openai/clip-vit-large-patch14-336",
        "name": "clip_vision_model",
        "num_img_tokens": 144,
    },
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "su"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}
"""What counts in the config.json of the published models, but for the factors."""


def changed(section: str, **fields: Any) -> dict[str, Any]:
    """The published fields with some of a section changed."""
    made = copy.deepcopy(PUBLISHED)
    made[section] = made.get(section, {}) | fields
    return made


def test_published_config() -> None:
    config = Phi3VConfig.from_hf(PUBLISHED)
    assert (config.max_model_len, config.image_token) == (131072, 32044)
    tower = config.vision
    assert (tower.hidden_size, tower.num_heads, tower.num_layers) == (1024, 16, 23)
    assert (tower.intermediate_size, tower.num_patches, tower.activation) == (
        4096,
        576,
        "quick_gelu",
    )
    assert Phi3VConfig.from_hf(changed("img_processor", layer_idx=None)) == config
    assert Phi3VConfig.from_hf(changed("img_processor", layer_idx=-1)).vision.num_layers == 24
    _, shapes, _ = functional.abstract(Phi3V, config, jnp.bfloat16)
    unused = 4 * 1025 * 1024 + (2 * 4096 + 5) * 1024 + 4096 + 2 * 1024  # last layer, last norm
    assert sum(shape.size for shape in shapes.values()) == 4_146_621_440 - unused
    assert Phi3V.encoders(config) == {"image": Phi3VEncoder(336, 12)}
    assert Phi3V.encoders(config)["image"].num_rows(17) == 2660


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("embd_layer", "embedding_cls", "text"),
        ("embd_layer", "projection_cls", "linear"),
        ("embd_layer", "projection_cls", None),
        ("embd_layer", "use_hd_transform", False),
        ("embd_layer", "with_learnable_separator", None),
        ("embd_layer", "hd_transform_order", "glb_sub"),
        ("embd_layer", "hd_transform_order", None),
        ("img_processor", "name", "siglip"),
        ("img_processor", "type_feature", "cls_patch"),
        ("img_processor", "num_img_tokens", 576),
    ],
)
def test_settings_that_are_not_implemented(section: str, field: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"'{section}\.{field}'.*only .* implemented"):
        Phi3VConfig.from_hf(changed(section, **{field: value}))


@pytest.mark.parametrize("fields", [{"image_size": 448}, {"patch_size": 28}])
def test_squares_must_be_those_of_the_processor(fields: dict[str, int]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"image_size.*patch_size.*only 336 and 14"):
        Phi3VConfig.from_hf(changed("vision_config", **fields))


@pytest.mark.parametrize("section", ["embd_layer", "img_processor"])
@pytest.mark.parametrize("value", [None, "default"])
def test_sections_must_be_there(section: str, value: Any) -> None:
    with pytest.raises(ModelConfigError, match=f"'{section}'.*{value}.*must be an object"):
        Phi3VConfig.from_hf({**PUBLISHED, section: value})


@pytest.mark.parametrize("index", [25, -26, 1.0, True, [-2, -3]])
def test_layer_must_be_there(index: Any) -> None:
    with pytest.raises(ModelConfigError, match=r"'img_processor\.layer_idx'.*from -25 to 24"):
        Phi3VConfig.from_hf(changed("img_processor", layer_idx=index))


def test_width_of_patches_must_be_that_of_the_tower() -> None:
    with pytest.raises(ModelConfigError, match=r"image_dim_out'.*is 768.*size is 1024"):
        Phi3VConfig.from_hf(changed("img_processor", image_dim_out=768))
    with pytest.raises(ModelConfigError, match=r"image_dim_out'.*is 1024.*size is 512"):
        Phi3VConfig.from_hf(changed("vision_config", hidden_size=512))


def test_token_for_features_must_be_in_the_vocabulary() -> None:
    assert Phi3VConfig.from_hf({**PUBLISHED, "image_token_id": 5}).image_token == 5
    with pytest.raises(ModelConfigError, match="32044.*has 32000 tokens.*Set 'image_token_id'"):
        Phi3VConfig.from_hf({**PUBLISHED, "vocab_size": 32000})
    with pytest.raises(ModelConfigError, match="'image_token_id'.*-1.*at least 0"):
        Phi3VConfig.from_hf({**PUBLISHED, "image_token_id": -1})
