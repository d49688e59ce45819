"""What LLaVA-NeXT and LLaVA-NeXT-Video make of pictures and videos.

`test_llava_next_video.py` of the models compares pixels with what `transformers` makes.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.models.conftest import read_json
from tests.models.square_models import SquareModel

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.multimodal.errors import MediaError
from quire.multimodal.llava_next_video import LlavaNextImages, LlavaNextVideos
from quire.multimodal.processors import FORMATS

VIDEO = SquareModel("llava_next_video")
PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
CLIP = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_pad": True,
    "do_resize": True,
    "image_grid_pinpoints": [list(size) for size in PINPOINTS],
    "resample": 3,
    "size": {"shortest_edge": 336},
}
EXACT = {"size": {"height": 336, "width": 336}, "do_center_crop": False}


def images(**changed: Any) -> LlavaNextImages:
    """Of published models."""
    return LlavaNextImages.from_hf(CLIP | changed, side=336, patch_size=14, pinpoints=PINPOINTS)


def videos(**changed: Any) -> LlavaNextVideos:
    return LlavaNextVideos.from_hf(CLIP | changed, side=336, patch_size=14, stride=2)


def test_tokens_of_pictures_as_by_transformers() -> None:
    """Of many sizes, some of them very thin or a pixel."""
    sizes, processor = VIDEO.expected["sizes"].tolist(), images()
    assert len(sizes) > 60
    tokens = [processor.num_tokens(width, height) for height, width in sizes]
    assert tokens == VIDEO.expected["sizes/tokens"].tolist()
    assert max(tokens) <= processor.max_tokens == 576 + 48 * 49


def test_tokens_are_told_before_media_are_prepared() -> None:
    for name in ("wide", "tall", "small", "thin", "large", "line"):
        tokens = VIDEO.processor("image").num_tokens(*VIDEO.picture(name).size)
        assert tokens == len(VIDEO.expected[f"{name}/features"])
    for name in ("clip", "film", "exact"):
        number, height, width, _ = VIDEO.expected[f"{name}/frames"].shape
        tokens = VIDEO.processor("video").num_tokens(number, width, height)
        assert tokens == len(VIDEO.expected[f"{name}/features"])


def test_tokens_of_videos() -> None:
    assert videos().num_tokens(32, 640, 480) == 32 * 144
    assert (videos().max_tokens, videos().max_part_tokens) == (768 * 144, 144)
    odd = LlavaNextVideos.from_hf(CLIP, side=336, patch_size=14, stride=5)
    assert odd.num_tokens(1, 640, 480) == 16


def test_frames_are_cut_each_by_itself_from_their_middles() -> None:
    frames, processor = VIDEO.expected["clip/frames"], VIDEO.processor("video")
    prepared = processor(frames).pixels
    assert prepared.shape == (3, 3, 32, 32)
    np.testing.assert_array_equal(processor(frames[2:]).pixels[0], prepared[2])
    wide = np.zeros((1, 32, 64, 3), np.uint8)
    wide[:, :, 16:48] = 255
    assert (processor(wide).pixels > 1).all()


def test_videos_are_prepared_by_the_file_of_pictures_where_there_is_no_other() -> None:
    """As by newer versions of `transformers`; it says that pictures of a batch are padded."""
    hf = read_json(VIDEO.folder / "preprocessor_config.json")
    assert hf["do_pad"]
    load = FORMATS["LlavaNextVideoForConditionalGeneration"]["video"].load
    assert load(hf, VIDEO.model.config) == VIDEO.processor("video")


def test_videos_that_have_no_tokens_are_refused() -> None:
    few = dataclasses.replace(videos(), max_frames=2)
    with pytest.raises(MediaError, match="has 3 frames; it may have 1 to 2"):
        few(np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(MediaError, match="has 0 frames"):
        few.num_tokens(0, 10, 10)
    with pytest.raises(MediaError, match="900x3 pixels; its long side may be at most 200"):
        few.num_tokens(1, 900, 3)


def test_thin_pictures_are_taken() -> None:
    prepared = images()(Image.new("RGB", (900, 3), "white"))
    assert (prepared.grid, prepared.shown) == ((1, 3), (0, 72))
    assert prepared.pixels.shape == (4, 3, 336, 336)


def test_how_frames_are_taken_can_be_set() -> None:
    form = FORMATS["LlavaNextVideoForConditionalGeneration"]["video"]
    changed = form.with_settings(videos(), {"num_frames": 8, "fps": 2})
    assert (changed.num_frames, changed.fps) == (8, 2)


def test_what_a_file_may_say_otherwise() -> None:
    expected = LlavaNextImages(side=336, along=24, pinpoints=PINPOINTS)
    assert images() == images(image_grid_pinpoints=None) == images(**EXACT) == expected
    assert images(resample=2).resample == Image.Resampling.BILINEAR
    assert (videos(max_frames=9).max_frames, videos(size=400).clip.resize) == (9, 400)


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"image_grid_pinpoints": [[336, 336]]}, ModelConfigError, r"is \[\[336, 336\]\], and in"),
        ({"size": {"shortest_edge": 400}}, ModelConfigError, "size is 400 .* takes 336"),
        ({"crop_size": 224}, ModelConfigError, r"pictures of \(224, 224\).*takes \(336, 336\)"),
        ({"do_resize": False}, UnsupportedModelError, "'do_resize' False; only True"),
        ({"do_center_crop": False}, UnsupportedModelError, "'do_center_crop' False; only True"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        images(**changed)


def test_videos_of_another_size_than_the_tower_sees_are_refused() -> None:
    with pytest.raises(ModelConfigError, match=r"pictures of \(224, 224\).*takes \(336, 336\)"):
        videos(crop_size=224)
