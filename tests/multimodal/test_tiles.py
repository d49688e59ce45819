"""How pictures of any resolution are cut, and what LLaVA-OneVision makes of pictures and videos.

`test_llava_onevision.py` of the models compares pixels with what `transformers` makes.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.models.llava_onevision_model import EXPECTED, PICTURES, images, picture, videos

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.multimodal import tiles
from quire.multimodal.errors import MediaError
from quire.multimodal.llava_onevision import LlavaOnevisionImages, LlavaOnevisionVideos
from quire.multimodal.pixels import CLIP_MEAN

EDGES = range(384, 2305, 384)
PUBLISHED = LlavaOnevisionImages(
    side=384,
    along=27,
    pinpoints=tuple((height, width) for height in EDGES for width in EDGES),
)
SQUARE = [[384, 384]]
NEAREST = Image.Resampling.NEAREST


def from_hf(hf: dict[str, Any]) -> LlavaOnevisionImages:
    return LlavaOnevisionImages.from_hf(
        hf, side=384, along=27, pinpoints=((384, 384),), max_squares=9
    )


def test_tokens_of_pictures_as_by_transformers() -> None:
    """Of many sizes, some of them very thin or a pixel."""
    sizes = EXPECTED["sizes"].tolist()
    assert len(sizes) > 60
    tokens = [PUBLISHED.num_tokens(width, height) for height, width in sizes]
    assert tokens == EXPECTED["sizes/tokens"].tolist()
    assert max(tokens) <= PUBLISHED.max_tokens


def test_grids_of_pictures_as_by_transformers() -> None:
    for (height, width), grid in zip(EXPECTED["sizes"], EXPECTED["sizes/grids"], strict=True):
        size = tiles.best_size(int(height), int(width), PUBLISHED.pinpoints)
        assert [size[0] // 384, size[1] // 384] == grid.tolist()


@pytest.mark.parametrize("name", PICTURES)
def test_tokens_are_told_before_a_picture_is_prepared(name: str) -> None:
    size = picture(name).size
    assert images().num_tokens(*size) == len(EXPECTED[f"{name}/features"])
    assert images(tiled=False).num_tokens(*size) == len(EXPECTED[f"{name}/untiled"])


def test_no_picture_has_more_tokens_than_said() -> None:
    processor = images()
    tokens = [processor.num_tokens(w, h) for w in range(1, 140, 3) for h in range(1, 140, 3)]
    assert 0.8 * processor.max_tokens < max(tokens) <= processor.max_tokens


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_pixels_and_lines_are_pictures_too(size: tuple[int, int]) -> None:
    prepared = images()(Image.new("RGB", size, "white"))
    assert prepared.pixels.shape[0] == 1 + prepared.grid[0] * prepared.grid[1]
    assert np.isfinite(prepared.pixels).all()


def test_the_least_wasted_of_sizes_that_show_as_much() -> None:
    sizes = [(768, 384), (384, 384), (384, 768), (768, 768)]
    assert tiles.best_size(300, 300, sizes) == (384, 384)
    assert tiles.best_size(300, 500, sizes) == (384, 768)
    assert tiles.best_size(500, 300, sizes) == (768, 384)
    assert tiles.best_size(2000, 2000, sizes) == (768, 768)


def test_the_first_of_sizes_that_are_alike() -> None:
    assert tiles.best_size(10, 10, [(20, 40), (40, 20)]) == (20, 40)
    assert tiles.best_size(10, 10, [(40, 20), (20, 40)]) == (40, 20)


def test_what_was_padded_is_cut_off_both_sides_alike() -> None:
    assert tiles.unpadded(100, 200, (54, 54)) == (28, 54)
    assert tiles.unpadded(200, 100, (54, 54)) == (54, 28)
    assert tiles.unpadded(100, 100, (54, 54)) == (54, 54)
    assert tiles.unpadded(1, 900, (27, 162)) == (1, 162)
    assert tiles.unpadded(1, 900, (54, 54)) == (0, 54)


def test_grids_are_scaled_to_about_the_bound_when_clearly_above() -> None:
    assert tiles.bounded((10, 10), 100) == (10, 10)
    assert tiles.bounded((11, 11), 100) == (11, 11)
    assert tiles.bounded((11, 12), 100) == (9, 10)
    assert tiles.bounded((40, 10), 100) == (20, 5)


def test_tiles_row_by_row_with_black_around() -> None:
    """A picture of 2 x 4 pixels, each its own colour, doubled into 2 x 2 tiles."""
    colors = np.arange(1, 9, dtype=np.uint8).reshape(2, 4, 1) * np.uint8(30)
    image = Image.fromarray(np.repeat(colors, 3, -1))
    cut = [np.asarray(tile)[..., 0] for tile in tiles.cut(image, (8, 8), 4, NEAREST)]
    joined = np.block([cut[:2], cut[2:]])
    expected = np.zeros((8, 8), np.uint8)
    expected[2:6] = np.repeat(np.repeat(colors[..., 0], 2, 0), 2, 1)
    np.testing.assert_array_equal(joined, expected)
    [tile] = tiles.cut(image.transpose(Image.Transpose.TRANSPOSE), (8, 8), 8, NEAREST)
    np.testing.assert_array_equal(np.asarray(tile)[..., 0], expected.T)


def test_a_square_of_colour_around_a_picture() -> None:
    wide = np.asarray(tiles.padded_to_square(Image.new("RGB", (4, 1), "white"), (1, 2, 3)))
    assert (wide[1] == 255).all()
    assert wide[[0, 2, 3]].reshape(-1, 3).tolist() == [[1, 2, 3]] * 12
    tall = np.asarray(tiles.padded_to_square(Image.new("RGB", (1, 2), "white"), (1, 2, 3)))
    assert tall.tolist() == [[[255] * 3, [1, 2, 3]]] * 2


def test_the_whole_is_scaled_whatever_its_aspect() -> None:
    image = picture("tall")
    prepared = images()(image)
    alone = images().normalize(image.resize((38, 38), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(prepared.pixels[0], alone)


def test_one_of_several_pictures_keeps_its_aspect() -> None:
    prepared = images(tiled=False)(Image.new("RGB", (76, 38), "white"))
    assert prepared.pixels.shape == (1, 3, 38, 38)
    [pixels] = prepared.pixels
    mean = np.array([int(255 * mean) / 255 - mean for mean in CLIP_MEAN]) / images().normalize.std
    np.testing.assert_allclose(pixels[:, 0].T, np.tile(mean, (38, 1)), rtol=0, atol=1e-5)
    assert (pixels[:, 19] > 1).all()


def test_tokens_of_videos() -> None:
    published = LlavaOnevisionVideos(side=384, along=27)
    assert published.num_tokens(32, 640, 480) == 32 * 196 + 1
    assert published.max_tokens == 768 * 196 + 1
    assert published.max_part_tokens == 197
    for name in ("clip", "film"):
        number, height, width, _ = EXPECTED[f"{name}/frames"].shape
        assert videos().num_tokens(number, width, height) == len(EXPECTED[f"{name}/features"])


def test_frames_are_scaled_each_by_itself() -> None:
    frames = EXPECTED["film/frames"]
    prepared = videos()(frames)
    assert prepared.ends
    assert prepared.pixels.shape == (5, 3, 38, 38)
    np.testing.assert_array_equal(videos()(frames[3:4]).pixels[0], prepared.pixels[3])


def test_videos_of_no_frames_or_too_many_are_refused() -> None:
    processor = dataclasses.replace(videos(), max_frames=2)
    with pytest.raises(MediaError, match="has 3 frames; it may have 1 to 2"):
        processor(EXPECTED["clip/frames"])
    with pytest.raises(MediaError, match="has 0 frames"):
        processor.num_tokens(0, 10, 10)


def test_what_a_file_leaves_out() -> None:
    assert from_hf({}) == LlavaOnevisionImages(side=384, along=27, pinpoints=((384, 384),))
    hf = {"max_frames": 9, "resample": 2, "size": 384}
    assert LlavaOnevisionVideos.from_hf(hf, side=384, along=27) == LlavaOnevisionVideos(
        side=384, along=27, max_frames=9, resample=Image.Resampling.BILINEAR
    )


@pytest.mark.parametrize(
    ("hf", "error", "match"),
    [
        ({"image_grid_pinpoints": [[384, 768]]}, ModelConfigError, r"is \[\[384, 768\]\], and in"),
        ({"image_grid_pinpoints": 384}, ModelConfigError, "'image_grid_pinpoints'.* is 384, and"),
        ({"size": {"height": 336, "width": 336}}, ModelConfigError, r"size is \(336, 336\).*384"),
        ({"size": {"height": 384}}, ModelConfigError, "'width'.*at least 1"),
        ({"do_resize": False}, UnsupportedModelError, "'do_resize' False; only True"),
        ({"do_center_crop": True}, UnsupportedModelError, "'do_center_crop' True; only False"),
    ],
)
def test_what_is_refused(hf: dict[str, Any], error: type[Exception], match: str) -> None:
    assert from_hf({"image_grid_pinpoints": SQUARE}).pinpoints == ((384, 384),)
    with pytest.raises(error, match=match):
        from_hf(hf)
