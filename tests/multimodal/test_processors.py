"""Image processors against transformers' (CLIP, Qwen2-VL) and against a plain reference (Phi-3-V).

`tests/fixtures/images.npz` is made by `scripts/make_image_fixtures.py`, videos by
`scripts/make_qwen2_vl_fixtures.py`.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quire.errors import ModelConfigError, UnsupportedModelError
from quire.multimodal.clip import ClipImages
from quire.multimodal.errors import MediaError
from quire.multimodal.phi3_v import Phi3VImages, _cubic_rows
from quire.multimodal.pixels import CLIP_MEAN, CLIP_STD
from quire.multimodal.qwen2_vl import Patches, Qwen2VLImages, Qwen2VLVideos

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
FILE = np.load(FIXTURES / "images.npz")
VIDEOS = np.load(FIXTURES / "vision" / "qwen2_vl" / "expected_video.npz")
TINY_VIDEOS = json.loads(
    (FIXTURES / "vision" / "qwen2_vl" / "video_preprocessor_config.json").read_text("utf-8")
)
NAMES = sorted(key.partition("/")[0] for key in FILE if key.endswith("/picture"))
TOLERANCE = {"rtol": 0, "atol": 1e-5}

LLAVA = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(CLIP_MEAN),
    "image_processor_type": "CLIPImageProcessor",
    "image_std": list(CLIP_STD),
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 336},
}
QWEN = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
    "image_processor_type": "Qwen2VLImageProcessor",
}


def picture(name: str) -> Image.Image:
    return Image.fromarray(FILE[f"{name}/picture"])


@pytest.mark.parametrize("name", NAMES)
def test_clip_is_that_of_transformers(name: str) -> None:
    large = ClipImages.from_hf(LLAVA, patch_size=14)(picture(name))
    assert (large.shape, large.dtype) == ((3, 336, 336), np.float32)
    np.testing.assert_allclose(large[:, ::17, ::17], FILE[f"{name}/clip336"], **TOLERANCE)
    small = ClipImages.from_hf(LLAVA | {"size": 28, "crop_size": 28}, patch_size=14)
    np.testing.assert_allclose(small(picture(name)), FILE[f"{name}/clip28"], **TOLERANCE)


def test_tokens_of_clip() -> None:
    assert ClipImages.from_hf(LLAVA, patch_size=14).max_tokens == 576
    assert ClipImages.from_hf(LLAVA, patch_size=14, select_strategy="full").max_tokens == 577


def test_clip_of_an_exact_size_and_of_raw_values() -> None:
    exact = LLAVA | {"size": {"height": 20, "width": 30}, "do_center_crop": False}
    raw = exact | {"do_rescale": False, "do_normalize": False}
    image = Image.new("RGB", (5, 5), (1, 2, 3))
    assert ClipImages.from_hf(exact, patch_size=10).num_tokens(300, 2) == 6
    made = ClipImages.from_hf(raw, patch_size=10)(image)
    np.testing.assert_array_equal(made, np.tile([[[1.0]], [[2.0]], [[3.0]]], (1, 20, 30)))


def test_a_thin_picture_does_not_become_huge() -> None:
    processor = ClipImages.from_hf(LLAVA, patch_size=14)
    assert processor(Image.new("RGB", (1, 200))).shape == (3, 336, 336)
    for size in ((1, 201), (1 << 20, 1)):
        with pytest.raises(MediaError, match="at most 200 times"):
            processor(Image.new("RGB", size))


@pytest.mark.parametrize("bounds", [(3136, 1003520), (9408, 10976), (784, 2352)])
@pytest.mark.parametrize("name", NAMES)
def test_qwen2_vl_is_that_of_transformers(name: str, bounds: tuple[int, int]) -> None:
    expected = f"{name}/qwen{bounds[0]}-{bounds[1]}"
    old = QWEN | {"min_pixels": bounds[0], "max_pixels": bounds[1]}
    new = QWEN | {"size": {"shortest_edge": bounds[0], "longest_edge": bounds[1]}}
    new |= {"min_pixels": None, "max_pixels": None}
    for config in (old, new):
        processor, image = Qwen2VLImages.from_hf(config), picture(name)
        made = processor(image)
        rows = math.prod(made.grid)
        assert (made.patches.shape, made.patches.dtype) == ((rows, 1176), np.uint8)
        assert made.grid == tuple(FILE[f"{expected}/grid"]) == processor.grid(*image.size)
        assert made.num_tokens * 4 == rows
        assert made.num_tokens == processor.num_tokens(*image.size) <= processor.max_tokens
        values = normalized(made)[:, ::11]
        np.testing.assert_allclose(values, FILE[f"{expected}/patches"], **TOLERANCE)


def normalized(made: Patches) -> np.ndarray:
    """Patches as `transformers` makes them, and as the device does."""
    factors, terms = (np.repeat(x, made.patches.shape[1] // 3) for x in (made.factors, made.terms))
    return made.patches * factors + terms


def test_sizes_of_qwen2_vl() -> None:
    processor = Qwen2VLImages.from_hf(QWEN)
    assert processor.grid(28, 28) == (1, 4, 4)
    assert processor.grid(1920, 1080) == (1, 78, 138)  # 1092 x 1932: halves go to even
    assert processor.num_tokens(1920, 1080) == 2691
    assert processor.num_tokens(10_000, 8_000) <= processor.max_tokens == 16384
    with pytest.raises(MediaError, match="at most 200 times"):
        processor.num_tokens(201, 1)


@pytest.mark.parametrize("bounds", [(1, 784), (784, 784), (3136, 4000), (9408, 10976)])
def test_no_picture_has_more_than_the_most_tokens_of_qwen2_vl(bounds: tuple[int, int]) -> None:
    processor = Qwen2VLImages(*bounds)
    edges = np.random.default_rng(1).integers(1, 400, (2000, 2)).tolist()
    edges += [[1, 200], [200, 1], [14, 2800], [15, 3000], [42, 8400]]
    sizes = [(w, h) for w, h in edges if max(w, h) <= 200 * min(w, h)]
    assert max(processor.num_tokens(*size) for size in sizes) <= processor.max_tokens


def test_a_patch_of_qwen2_vl_is_where_it_belongs() -> None:
    array = np.zeros((56, 84, 3), np.uint8)
    array[14:28, 28:42, 1] = 255  # patch (1, 2): token (0, 1), its third
    config = QWEN | {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    made = Qwen2VLImages.from_hf(config)(Image.fromarray(array))
    assert made.grid == (1, 4, 6)
    lit = made.patches.reshape(24, 3, 2, 14, 14).any(axis=(3, 4))
    expected = np.zeros((24, 3, 2), bool)
    expected[4 + 2, 1] = True
    np.testing.assert_array_equal(lit, expected)


@pytest.mark.parametrize(
    ("name", "video", "settings"),
    [
        ("long", "long", TINY_VIDEOS),
        ("short", "short", TINY_VIDEOS),
        ("capped", "long", TINY_VIDEOS | {"cap_pixels_per_frame": True, "max_video_tokens": 22}),
        ("full", "long", {}),
    ],
)
def test_qwen2_vl_videos_are_those_of_transformers(
    name: str, video: str, settings: dict[str, Any]
) -> None:
    """Torch resizes frames with other rounding than Pillow: of one value in six or fewer it makes
    the next of the 256, which is 0.015 after normalization.
    """
    processor, frames = Qwen2VLVideos.from_hf(settings), VIDEOS[f"{video}/frames"]
    made, expected = processor(frames), VIDEOS[f"{name}/patches"]
    number, height, width, _ = frames.shape
    assert made.grid == tuple(VIDEOS[f"{name}/grid"]) == processor.grid(number, width, height)
    assert made.num_tokens == math.prod(made.grid) // 4
    assert made.num_tokens == processor.num_tokens(number, width, height) <= processor.max_tokens
    assert made.patches.dtype == np.uint8
    patches = normalized(made)[::7, ::97] if name == "full" else normalized(made)
    assert patches.shape == expected.shape
    error = np.abs(patches - expected)
    assert error.max() < 0.0151
    assert (error > 1e-5).mean() < 0.18


@pytest.mark.parametrize(
    ("name", "settings"),
    [("grids", {}), ("capped", {"cap_pixels_per_frame": True, "max_video_tokens": 1000})],
)
def test_sizes_of_qwen2_vl_videos(name: str, settings: dict[str, Any]) -> None:
    processor = Qwen2VLVideos.from_hf(settings)
    grids = [processor.grid(*size) for size in VIDEOS["sizes"].tolist()]
    np.testing.assert_array_equal(grids, VIDEOS[f"sizes/{name}"])
    assert len(VIDEOS["sizes"]) == 16


def test_the_last_frame_of_a_qwen2_vl_video_fills_its_patch() -> None:
    processor = Qwen2VLVideos(min_pixels=784, max_pixels=784)
    frames = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.full((28, 28, 3), 90, np.uint8)
    three, four = processor(frames), processor(np.concatenate([frames, frames[2:]]))
    assert three.grid == four.grid == (2, 2, 2)
    np.testing.assert_array_equal(three.patches, four.patches)
    levels = normalized(three).reshape(2, 4, 3, 2, 196)
    expected = (np.array([[0, 90], [180, 180]]) / 255 - CLIP_MEAN[0]) / CLIP_STD[0]
    np.testing.assert_allclose(levels[:, :, 0].mean((1, 3)), expected, **TOLERANCE)
    still = Qwen2VLImages(784, 784)(Image.fromarray(frames[1]))
    np.testing.assert_array_equal(processor(frames[1:2]).patches, still.patches)


@pytest.mark.parametrize("total", [None, 1, 20_000, 200_000])
@pytest.mark.parametrize("bounds", [(1, 784), (3136, 4000), (9408, 10976)])
def test_no_video_has_more_than_the_most_tokens_of_qwen2_vl(
    bounds: tuple[int, int], total: int | None
) -> None:
    processor = Qwen2VLVideos(*bounds, max_frames=9, total_pixels=total)
    edges = np.random.default_rng(1).integers(1, 400, (300, 2)).tolist()
    edges += [[1, 200], [200, 1], [15, 3000], [42, 8400]]
    sizes = [(w, h) for w, h in edges if max(w, h) <= 200 * min(w, h)]
    most = max(processor.num_tokens(frames, *size) for frames in range(1, 10) for size in sizes)
    assert most <= processor.max_tokens


def test_limits_of_qwen2_vl_videos() -> None:
    processor = Qwen2VLVideos.from_hf(TINY_VIDEOS)
    assert (processor.max_frames, Qwen2VLVideos.from_hf({}).max_frames) == (6, 768)
    for frames in (0, 7):
        with pytest.raises(MediaError, match=f"has {frames} frames.*1 to 6.*max_frames"):
            processor.num_tokens(frames, 8, 8)
    with pytest.raises(MediaError, match="has 7 frames"):
        processor(np.zeros((7, 8, 8, 3), np.uint8))
    with pytest.raises(MediaError, match="at most 200 times"):
        processor.num_tokens(1, 201, 1)
    assert Qwen2VLVideos.from_hf({"cap_pixels_per_frame": True}).total_pixels == 115_200 * 784


def reference_size(width: int, height: int, most: int) -> tuple[int, int, int, int]:
    """Squares down and across, and the height and width before padding, of a lying picture."""
    fitting = [k for k in range(1, most + 1) if k * math.ceil(k * height / width) <= most]
    across = max(fitting)
    return (
        math.ceil(across * height / width),
        across,
        across * 336,
        int(across * 336 / width * height),
    )


def reference_cubic(length: int) -> np.ndarray:
    """The matrix [336, length] of cubic interpolation with a = -0.75, one weight at a time."""
    a, matrix = -0.75, np.zeros((336, length))
    for row in range(336):
        place = (row + 0.5) * length / 336 - 0.5
        for column in range(math.floor(place) - 1, math.floor(place) + 3):
            x = abs(place - column)
            if x < 1:
                weight = 1 - (a + 3) * x * x + (a + 2) * x**3
            else:
                weight = a * x**3 - 5 * a * x * x + 8 * a * x - 4 * a
            matrix[row, min(max(column, 0), length - 1)] += weight
    return matrix


def reference_phi3_v(array: np.ndarray, most: int) -> tuple[np.ndarray, tuple[int, int], int]:
    """Crops, size and tokens of a picture [H, W, 3], slowly."""
    upright = array.shape[0] > array.shape[1]
    lying = array.swapaxes(0, 1) if upright else array
    rows, columns, width, height = reference_size(lying.shape[1], lying.shape[0], most)
    image = Image.fromarray(np.ascontiguousarray(lying)).resize((width, height), 2)
    large = np.full((rows * 336, columns * 336, 3), 255, np.uint8)
    top = (rows * 336 - height) // 2
    large[top : top + height] = np.asarray(image)
    if upright:
        large, rows, columns = large.swapaxes(0, 1), columns, rows
    pixels = np.moveaxis((large / 255 - CLIP_MEAN) / CLIP_STD, -1, 0)
    whole = reference_cubic(rows * 336) @ pixels @ reference_cubic(columns * 336).T
    crops = [whole]
    for y in range(rows):
        for x in range(columns):
            crops.append(pixels[:, 336 * y : 336 * (y + 1), 336 * x : 336 * (x + 1)])
    local = rows * 12 * (columns * 12 + 1)  # rows of features, each with its end
    return np.stack(crops), (rows * 336, columns * 336), local + 1 + 12 * 13


@pytest.mark.parametrize("most", [1, 4, 16])
@pytest.mark.parametrize("name", NAMES)
def test_phi3_v_is_the_reference(name: str, most: int) -> None:
    crops, size, tokens = reference_phi3_v(FILE[f"{name}/picture"], most)
    processor, image = Phi3VImages.from_hf({"num_crops": most}), picture(name)
    made = processor(image)
    assert (made.size, made.num_tokens) == (size, tokens)
    assert (processor.size(*image.size), processor.num_tokens(*image.size)) == (size, tokens)
    assert 2 <= len(made.crops) <= most + 1
    assert made.crops.dtype == np.float32
    np.testing.assert_allclose(made.crops, crops, **TOLERANCE)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 2), (1, 4), (4, 3)])
def test_the_whole_of_phi3_v_is_that_of_torch(rows: int, columns: int) -> None:
    image = picture("61x83").resize((columns * 336, rows * 336), Image.Resampling.BILINEAR)
    pixels = Phi3VImages().normalize(image)
    made = _cubic_rows(_cubic_rows(pixels).swapaxes(1, 2)).swapaxes(1, 2)
    np.testing.assert_allclose(made[:, ::17, ::17], FILE[f"whole/{rows}x{columns}"], **TOLERANCE)


def test_sizes_of_phi3_v() -> None:
    many, few = Phi3VImages(16), Phi3VImages(4)
    assert (many.size(100, 100), many.num_tokens(100, 100)) == ((1344, 1344), 2509)
    assert (few.size(100, 100), few.num_tokens(100, 100)) == ((672, 672), 757)
    assert (many.size(50, 8000), many.num_tokens(50, 8000)) == ((5376, 336), 2653)
    with pytest.raises(MediaError, match="at most 5376 times"):
        many.num_tokens(1, 5400)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: clip(size=None), ModelConfigError, "'size'.* is 0"),
        (lambda: clip(size={"longest_edge": 3}), ModelConfigError, "'height'"),
        (lambda: clip(crop_size=400), ModelConfigError, r"crop_size is \(400, 400\)"),
        (lambda: clip(resample=9), ModelConfigError, "'resample'.* is 9"),
        (lambda: clip(image_mean=[1, 2]), ModelConfigError, "'image_mean'.*three numbers"),
        (lambda: clip(image_std=[1, 0, 1]), ModelConfigError, "'image_std'.*not 0"),
        (lambda: clip(rescale_factor="x"), ModelConfigError, "'rescale_factor'.* is 'x'"),
        (lambda: clip(do_pad=True), UnsupportedModelError, "'do_pad' True; only False"),
        (lambda: clip(do_resize=False), UnsupportedModelError, "'do_resize' False"),
        (lambda: clip(do_center_crop=False), UnsupportedModelError, "'do_center_crop' False"),
        (lambda: strategy("cls"), ModelConfigError, "is 'cls'; allowed are 'default'"),
        (lambda: qwen(min_pixels=0), ModelConfigError, "'min_pixels'.* is 0"),
        (lambda: qwen(max_pixels=100, min_pixels=1), ModelConfigError, "at least 784"),
        (lambda: qwen(max_pixels=900, min_pixels=901), ModelConfigError, "in order"),
        (lambda: qwen(do_resize=False), UnsupportedModelError, "'do_resize' False"),
        (lambda: Qwen2VLVideos.from_hf({"max_frames": 0}), ModelConfigError, "'max_frames'.* is 0"),
        (lambda: Qwen2VLVideos(max_pixels=784), ModelConfigError, "100352 and max_pixels 784"),
        (lambda: Phi3VImages.from_hf({"num_crops": True}), ModelConfigError, "'num_crops'"),
    ],
)
def test_bad_configs(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def clip(**changes: Any) -> ClipImages:
    return ClipImages.from_hf(LLAVA | changes, patch_size=14)


def strategy(name: str) -> ClipImages:
    return ClipImages.from_hf(LLAVA, patch_size=14, select_strategy=name)


def qwen(**changes: Any) -> Qwen2VLImages:
    return Qwen2VLImages.from_hf(QWEN | changes)
