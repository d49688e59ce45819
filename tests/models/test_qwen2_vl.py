"""Qwen2-VL with and without pictures against what `transformers` computes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tests.models.conftest import ROWS, PagedModel, ReferenceModel, forward, read_json
from tests.models.qwen2_vl_model import (
    FOLDER,
    PROMPTS,
    VIDEOS,
    Prompt,
    expected,
    load_model,
    load_picture,
    load_prompt,
)

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.models import functional, mrope
from quire.models.batch import TokenBatch
from quire.models.features import Features
from quire.models.qwen2 import Qwen2, Qwen2Config
from quire.models.qwen2_vl import Qwen2VL, Qwen2VLConfig
from quire.multimodal.qwen2_vl import Qwen2VLImages, Qwen2VLVideos

TOLERANCE = 1e-4
RUN = 256
"""Patches of a run of the tower; it gives a quarter as many rows."""
OWN = RUN // 4
"""The index of a token that keeps its embedding."""
TWO_BILLION = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "max_window_layers": 28,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": True,
    "vocab_size": 151936,
    "vision_config": {"hidden_size": 1536, "in_chans": 3, "spatial_patch_size": 14},
}
"""The 2B model's, where they are not the default."""
SEVEN_BILLION = TWO_BILLION | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
    "vision_config": {"in_chans": 3, "spatial_patch_size": 14},
}
"""The 7B model's."""


def feature_rows(prompt: Prompt) -> np.ndarray:
    """What the tower gives for the prompt's pictures, as one run."""
    model = load_model()
    return model.encode(model.encoder.inputs(prompt.pictures, RUN))


def feature_index(prompt: Prompt) -> np.ndarray:
    holds = np.isin(prompt.tokens, (6, 7))
    return np.where(holds, np.cumsum(holds) - 1, OWN).astype(np.int32)


def places(prompt: Prompt, start: int, count: int) -> np.ndarray:
    """Rotary positions of some tokens of the prompt and of what follows it."""
    positions, delta = mrope.positions(len(prompt.tokens), prompt.layout)
    after = np.arange(len(prompt.tokens), start + count, dtype=np.int32) + delta
    return np.concatenate([positions, np.tile(after, (3, 1))], 1)[:, start : start + count]


def whole(prompt: Prompt, positions: np.ndarray | None) -> np.ndarray:
    """Logits of the prompt without a cache."""
    model, count = load_model(), len(prompt.tokens)
    empty = jnp.zeros(count, jnp.int32)
    batch = TokenBatch(
        positions=jnp.arange(count, dtype=jnp.int32),
        rows=empty,
        write_index=empty,
        page_table=empty[None],
        lengths=empty[:1],
        query_starts=empty[:2],
        rotary_positions=None if positions is None else jnp.asarray(positions),
        decode=False,
    )
    features = Features(jnp.asarray(feature_rows(prompt)), jnp.asarray(feature_index(prompt)))
    args = model.graphdef, model.params, batch, None, jnp.asarray(prompt.tokens), features
    return np.asarray(forward(*args)[0])


class PagedVision(PagedModel):
    """Rows with prompts that have pictures; all prompts' features are one array."""

    def __init__(self, *prompts: Prompt) -> None:
        model = load_model()
        super().__init__(ReferenceModel(model.config, model.graphdef, model.params, ()))
        self.prompts = prompts
        self.rows = jnp.concatenate([jnp.asarray(feature_rows(prompt)) for prompt in prompts])

    def step(self, chunks: list[np.ndarray], size: int | None = None) -> list[np.ndarray]:
        starts = self.lengths.tolist()
        chunks = [*chunks, *[np.zeros(0, int)] * (ROWS - len(chunks))]
        batch, tokens = self._batch(chunks, size)
        used = [
            (r, prompt, starts[r], len(chunks[r]))
            for r, prompt in enumerate(self.prompts)
            if len(chunks[r])
        ]
        rotary = np.concatenate(
            [places(prompt, start, count) for _, prompt, start, count in used], 1
        )
        rotary = np.pad(rotary, ((0, 0), (0, len(tokens) - rotary.shape[1])))
        batch = dataclasses.replace(batch, rotary_positions=jnp.asarray(rotary))
        features = None if size is None else Features(self.rows, self._index(used, size))
        args = self.reference.graphdef, self.reference.params, batch, self.cache, tokens, features
        logits, self.cache = forward(*args)
        ends = np.cumsum([len(chunk) for chunk in chunks])
        return np.split(np.asarray(logits)[: ends[-1]], ends[:-1])

    def _index(self, used: list[tuple[int, Prompt, int, int]], size: int) -> jax.Array:
        own = len(self.rows)
        index = np.full(size, own, np.int32)
        at = 0
        for r, prompt, start, count in used:
            mine = feature_index(prompt)[start : start + count]
            index[at : at + len(mine)] = np.where(mine == OWN, own, mine + r * OWN)
            at += count
        return jnp.asarray(index)


@pytest.mark.parametrize("name", PROMPTS)
def test_whole_prompt_agrees(name: str) -> None:
    prompt = load_prompt(name)
    logits = whole(prompt, places(prompt, 0, len(prompt.tokens)))
    assert np.abs(logits - prompt.logits).max() < TOLERANCE


def test_pictures_and_their_positions_matter() -> None:
    """So that the tests above could fail."""
    prompt = load_prompt("one")
    plain = whole(prompt, None)
    assert np.abs(plain - prompt.logits)[-1].max() > 0.5
    other = dataclasses.replace(prompt, pictures=(load_picture("tall"),))
    swapped = whole(other, places(prompt, 0, len(prompt.tokens)))
    assert np.abs(swapped - prompt.logits)[-1].max() > 0.5


@pytest.mark.parametrize("names", [("many", "one"), ("clip", "mixed"), ("mixed", "clip")])
@pytest.mark.parametrize("cut", [1, 9, 11])
def test_paged_cache_agrees_in_chunks_that_split_media(names: tuple[str, str], cut: int) -> None:
    """Beside it another prompt in one chunk, or none, then both decode to the reference tokens."""
    prompts = load_prompt(names[0]), load_prompt(names[1])
    model = PagedVision(*prompts)
    tokens = prompts[0].tokens
    found: list[list[np.ndarray]] = [[], []]
    for start in range(0, len(tokens), cut):
        chunks = [tokens[start : start + cut], prompts[1].tokens if start == cut else tokens[:0]]
        for rows, logits in zip(found, model.step(chunks, 64), strict=False):
            rows.append(logits)
    output: list[list[int]] = []
    for prompt, parts in zip(prompts, found, strict=True):
        logits = np.concatenate(parts)
        assert np.abs(logits - prompt.logits).max() < TOLERANCE
        output.append([int(logits[-1].argmax())])
    while len(output[0]) < len(prompts[0].greedy):
        chunks = [np.asarray(tokens[-1:]) for tokens in output]
        for tokens, logits in zip(output, model.step(chunks), strict=False):
            tokens.append(int(logits[-1].argmax()))
    assert output == [prompt.greedy.tolist() for prompt in prompts]


@pytest.mark.parametrize("name", PROMPTS)
def test_greedy_tokens_agree(name: str) -> None:
    prompt = load_prompt(name)
    model = PagedVision(prompt)
    output = [int(model.step([prompt.tokens], 64)[0][-1].argmax())]
    while len(output) < len(prompt.greedy):
        output.append(int(model.step([np.asarray(output[-1:])])[0][-1].argmax()))
    assert output == prompt.greedy.tolist()
    assert len(output) == 64


def test_text_is_that_of_qwen2() -> None:
    """Bit by bit, with equal positions along the three axes and without any."""
    model, prompt = load_model(), load_prompt("text")
    config = Qwen2Config.from_hf(read_json(FOLDER / "config.json") | {"rope_scaling": None})
    graphdef, shapes, _ = functional.abstract(Qwen2, config, jnp.float32)
    params = {name: model.params[name] for name in shapes}

    @functools.partial(jax.jit, static_argnums=0)
    def causal(graphdef: Any, params: dict[str, jax.Array]) -> jax.Array:
        bound = functional.bind(graphdef, params)
        return bound.logits(bound(jnp.asarray(prompt.tokens))[0])

    assert np.array_equal(causal(model.graphdef, model.params), causal(graphdef, params))
    vision = ReferenceModel(model.config, model.graphdef, model.params, ())
    for paged in (PagedModel(vision), PagedVision(prompt)):
        qwen2 = PagedModel(ReferenceModel(config, graphdef, params, ()))
        for chunk, size in ((prompt.tokens[:20], 32), (prompt.tokens[20:], 32), ([31], None)):
            ours, theirs = (m.step([np.asarray(chunk)], size)[0] for m in (paged, qwen2))
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["wide", "tall", "small", "thin"])
def test_the_processor_makes_what_the_encoder_takes(name: str) -> None:
    processor = Qwen2VLImages.from_hf(read_json(FOLDER / "preprocessor_config.json"))
    ours = processor(Image.fromarray(expected()[f"{name}/picture"]))
    picture, encoder = load_picture(name), load_model().encoder
    assert ours.grid == picture.grid
    assert np.array_equal(ours.patches, picture.patches)
    assert np.array_equal([ours.factors, ours.terms], [picture.factors, picture.terms])
    assert encoder.num_tokens(ours) == ours.num_tokens == len(picture.features)
    assert encoder.inputs([ours], RUN)["patches"].shape == (RUN, 96)


@pytest.mark.parametrize("name", VIDEOS)
def test_features_of_videos(name: str) -> None:
    model, video = load_model(), load_picture(name)
    features = model.encode(model.encoder.inputs([video], RUN))
    assert np.abs(features[: len(video.features)] - video.features).max() < 5e-5


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_of_one_patch_see_each_other_alone(name: str) -> None:
    model, video = load_model(), load_picture(name)
    time, *size = video.grid
    groups = [
        dataclasses.replace(video, patches=patches, grid=(1, *size))
        for patches in np.split(video.patches, time)
    ]
    alone = [model.encode(model.encoder.inputs([group], RUN)) for group in groups]
    rows = [features[: model.encoder.num_tokens(groups[0])] for features in alone]
    assert np.abs(np.concatenate(rows) - video.features).max() < 5e-5


def test_pictures_and_videos_share_programs() -> None:
    encoders = Qwen2VL.encoders(load_model().config)
    assert list(encoders) == ["image", "video"]
    assert encoders["image"] == encoders["video"]


@pytest.mark.parametrize("name", VIDEOS)
def test_the_processor_of_videos_makes_what_the_encoder_takes(name: str) -> None:
    """Torch rounds otherwise than Pillow where it resizes: some values differ by one in 255, which
    moves features, whose size is about 1, a little.
    """
    processor = Qwen2VLVideos.from_hf(read_json(FOLDER / "video_preprocessor_config.json"))
    frames = expected()[f"{name}/frames"]
    ours, video, model = processor(frames), load_picture(name), load_model()
    number, height, width, _ = frames.shape
    assert ours.grid == video.grid == processor.grid(number, width, height)
    assert processor.token_grid(number, width, height) == model.encoder.token_grid(ours)
    assert model.encoder.num_tokens(ours) == ours.num_tokens == len(video.features)
    features = model.encode(model.encoder.inputs([ours], RUN))[: ours.num_tokens]
    assert np.abs(features - video.features).max() < 0.06


def test_inputs_of_several_pictures() -> None:
    encoder = load_model().encoder
    small, video = load_picture("small"), load_picture("short")
    assert [encoder.units(picture) for picture in (small, video)] == [24, 64]
    assert [encoder.num_tokens(picture) for picture in (small, video)] == [6, 16]
    assert [encoder.token_grid(picture) for picture in (small, video)] == [(1, 2, 3), (2, 2, 4)]
    assert encoder.num_rows(512) == 128
    inputs = encoder.inputs([small, video], 512)
    assert {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in inputs.items()} == (
        encoder.abstract(512)
    )
    assert inputs["segments"].tolist() == [1] * 24 + [2] * 32 + [3] * 32 + [0] * 424
    assert np.array_equal(inputs["patches"][24:88], video.patches)
    assert np.array_equal(inputs["factors"][:88], [video.factors] * 88)
    assert np.array_equal(inputs["terms"][:88], [video.terms] * 88)
    assert not any(inputs[name][88:].any() for name in ("patches", "factors", "terms"))
    # rows of two by two neighbours: the first, the second, and the first of the next row of them
    square = [[0, 0], [0, 1], [1, 0], [1, 1]]
    places = inputs["positions"].tolist()
    assert places[:4] == places[24:28] == places[56:60] == square
    assert places[4:8] == [[row, column + 2] for row, column in square]
    assert places[12:16] == [[row + 2, column] for row, column in square]


def test_inputs_that_do_not_fit() -> None:
    encoder, wide = load_model().encoder, load_picture("wide")
    with pytest.raises(ValueError, match=r"run of 256 patches.*pictures of 300"):
        encoder.inputs([wide] * 5, 256)
    with pytest.raises(ValueError, match=r"run of 300 patches.*multiple of 256"):
        encoder.inputs([wide], 300)
    other = dataclasses.replace(wide, patches=wide.patches[:, :48])
    with pytest.raises(ValueError, match=r"shape \(60, 48\).*takes \(60, 96\).*preprocessor_conf"):
        encoder.inputs([other], 256)


def test_only_the_tower_is_used_to_encode() -> None:
    model = load_model()
    inputs = model.encoder.inputs([load_picture("small")], RUN)
    text = {name for name in model.params if name.split(".")[0] not in Qwen2VL.towers}
    without = {n: jnp.full_like(a, jnp.nan) if n in text else a for n, a in model.params.items()}
    poisoned = dataclasses.replace(model, params=without)
    assert np.array_equal(poisoned.encode(inputs), model.encode(inputs))


def test_names_of_every_layout() -> None:
    mapping = Qwen2VL.checkpoint_map(load_model().config)
    used = {piece.tensor for piece in mapping.pieces}
    assert "visual.blocks.0.attn.qkv.weight" in used
    assert "model.layers.0.self_attn.q_proj.weight" in used
    new = expected()["names"].tolist()
    assert {mapping.canonical(name) for name in new} == used
    headless = [name.removeprefix("model.") for name in new]
    assert {mapping.canonical(name) for name in headless} == used
    assert {mapping.canonical(name) for name in used} == used
    assert mapping.canonical("lm_head.weight") == "lm_head.weight"
    assert mapping.is_ignored("lm_head.weight")


def test_nested_config_is_the_flat_one() -> None:
    flat = Qwen2VLConfig.from_hf(read_json(FOLDER / "config.json"))
    assert Qwen2VLConfig.from_hf(read_json(FOLDER / "config_nested.json")) == flat
    assert (flat.image_token, flat.video_token) == (6, 7)
    assert flat.mrope_section == (2, 3, 3)
    assert (flat.qkv_bias, flat.tie_embeddings, flat.norm_eps) == (True, True, 1e-6)
    assert (flat.num_layers, flat.windows, flat.max_model_len) == (2, (None, None), 512)
    assert hash(flat) == hash(dataclasses.replace(flat))


@pytest.mark.parametrize("top", [True, False])
def test_embeddings_are_tied_at_either_level(top: bool) -> None:
    hf = read_json(FOLDER / "config_nested.json")
    hf["tie_word_embeddings"] = top
    assert Qwen2VLConfig.from_hf(hf).tie_embeddings == top
    hf["text_config"]["tie_word_embeddings"] = True
    assert Qwen2VLConfig.from_hf(hf).tie_embeddings


def test_windows_are_those_of_qwen2() -> None:
    hf = read_json(FOLDER / "config.json") | {"use_sliding_window": True, "max_window_layers": 1}
    assert Qwen2VLConfig.from_hf(hf).windows == (None, 512)
    del hf["max_window_layers"]  # 80 where the file does not say
    assert Qwen2VLConfig.from_hf(hf).windows == (None, None)


@pytest.mark.parametrize(
    ("fields", "parameters"), [(TWO_BILLION, 2208985600), (SEVEN_BILLION, 8291375616)]
)
def test_published_models(fields: dict[str, Any], parameters: int) -> None:
    """Counts of the published checkpoints."""
    config = Qwen2VLConfig.from_hf(fields)
    _, shapes, axes = functional.abstract(Qwen2VL, config, jnp.bfloat16)
    assert sum(int(np.prod(shape.shape)) for shape in shapes.values()) == parameters
    assert (config.image_token, config.video_token) == (151655, 151656)
    assert config.mrope_section == (16, 24, 24)
    assert config.max_model_len == 32768
    assert config.rope.inv_freq[1] == pytest.approx(1e6 ** (-1 / 64))
    encoder = Qwen2VL.encoders(config)["image"]
    assert encoder.abstract(16384)["patches"].shape == (16384, 1176)
    assert encoder.num_rows(16384) == 4096
    assert axes["vision.layers.0.attention.qkv"][1:] == ("vision_heads", "head_dim", "vision_embed")
    filled = {piece.param for piece in Qwen2VL.checkpoint_map(config).pieces}
    assert filled == shapes.keys()


def test_long_texts_by_yarn() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    scaling = yarn | {"mrope_section": [16, 24, 24]}
    config = Qwen2VLConfig.from_hf(TWO_BILLION | {"rope_scaling": scaling})
    assert config.max_model_len == 131072
    assert config.rope.attention_factor > 1
    assert config.mrope_section == (16, 24, 24)


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        (
            {"rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}},
            ModelConfigError,
            r"'mrope_section'.*\[2, 2, 2\].*sum is 8",
        ),
        ({"rope_scaling": {"type": "mrop"}}, UnsupportedModelError, r"'mrop' is not supported"),
        ({"vision_config": None}, ModelConfigError, r"'hidden_size' of vision_config is 3584.*32"),
        ({"image_token_id": -1}, ModelConfigError, r"'image_token_id'.*-1.*at least 0"),
        ({"num_hidden_layers": "2"}, ModelConfigError, r"'num_hidden_layers'.*'2'.*integer"),
    ],
)
def test_config_errors(fields: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Qwen2VLConfig.from_hf(read_json(FOLDER / "config.json") | fields)


def test_max_model_len_above_the_positions() -> None:
    with pytest.raises(ModelConfigError, match=r"max_model_len is 513.*1 to 512"):
        Qwen2VLConfig.from_hf(read_json(FOLDER / "config.json"), 513)
