"""Pictures of every kind come out upright, in RGB, and bombs and rubbish do not come in."""

import hashlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quire.multimodal.errors import MediaError
from quire.multimodal.images import FORMATS, digest, to_rgb


def picture(height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_files(kind: str) -> None:
    data = encoded(Image.fromarray(picture()), kind, lossless=True)
    for given in (data, bytearray(data), memoryview(data)):
        image = to_rgb(given)
        assert (type(image), image.mode) == (Image.Image, "RGB")
        np.testing.assert_array_equal(image, picture())


@pytest.mark.parametrize("kind", ["JPEG", "GIF"])
def test_lossy_files(kind: str) -> None:
    image = Image.fromarray(np.full((5, 7, 3), (255, 0, 0), np.uint8))
    assert np.abs(np.asarray(to_rgb(encoded(image, kind))).astype(int) - image).max() <= 2


def test_arrays_and_pictures() -> None:
    array = picture()
    np.testing.assert_array_equal(to_rgb(array), array)
    np.testing.assert_array_equal(to_rgb(array[::-1, ::-1]), array[::-1, ::-1])
    for dtype in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(to_rgb((array / 255).astype(dtype)), array)
    given = Image.fromarray(array)
    made = to_rgb(given)
    made.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(given, array)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\)"),
        (np.zeros((3, 4, 4), np.uint8), r"shape \(3, 4, 4\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "4x0"),
        (np.zeros((4, 4, 3), np.int32), "dtype int32"),
        (np.full((4, 4, 3), 255.0), "from 255.0 to 255.0"),
        (np.full((4, 4, 3), -0.5), "from -0.5"),
        (np.full((4, 4, 3), np.nan), "nan"),
        ("cat.png", "type str"),
        (None, "type NoneType"),
        (b"", "0 bytes"),
        (b"hello, world", "begin with b'hello, w'"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        (b"P6 1 1 255\n123", "no picture"),
        (Image.new("F", (2, 2)), "mode 'F'"),
    ],
)
def test_what_is_no_picture(given: Any, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        to_rgb(given)


@pytest.mark.parametrize("size", [(8193, 8193), (10_000, 10_000), (65535, 65535), (2**31 - 1, 1)])
def test_bombs_are_refused_by_their_header(size: tuple[int, int]) -> None:
    with pytest.raises(MediaError, match="at most 67108864 are allowed"):
        to_rgb(png_header(*size))


def test_the_pixel_limit_is_exact() -> None:
    data = encoded(Image.fromarray(picture(5, 7)))
    assert to_rgb(data, max_pixels=35).size == (7, 5)
    for given in (data, Image.fromarray(picture(5, 7)), picture(5, 7)):
        with pytest.raises(MediaError, match="7x5 pixels, and at most 34"):
            to_rgb(given, max_pixels=34)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_and_corrupt_files(kind: str) -> None:
    whole = encoded(Image.fromarray(picture(64, 64)), kind)
    random = np.random.default_rng(0)
    with pytest.raises(MediaError, match="cannot be decoded|no picture"):
        to_rgb(whole[: len(whole) // 2])
    for _ in range(60):
        broken = bytearray(whole)
        for place in random.integers(0, len(whole), 5):
            broken[place] = random.integers(256)
        try:
            assert to_rgb(broken, max_pixels=1 << 20).mode == "RGB"
        except MediaError:
            pass


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    image = to_rgb(data)
    assert image.size == (4, 4)
    assert image.getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, kind: str) -> None:
    array = picture()
    turned = {  # what a camera stores for the picture to be shown as `array`
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: np.rot90(array),
        7: np.rot90(array, 2).swapaxes(0, 1),
        8: np.rot90(array, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turned))
    data = encoded(stored, kind, exif=exif, lossless=True)
    np.testing.assert_array_equal(to_rgb(data), array)
    with Image.open(io.BytesIO(data)) as file:
        np.testing.assert_array_equal(to_rgb(file), array)


@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish", b"", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_broken_exif_is_not_followed(exif: bytes) -> None:
    data = encoded(Image.fromarray(picture()), "PNG", exif=exif)
    np.testing.assert_array_equal(to_rgb(data), picture())


def test_alpha_is_composited_on_white() -> None:
    rgba = np.array([[[0, 0, 0, 0], [10, 20, 30, 255], [0, 100, 200, 51]]], np.uint8)
    expected = [[[255, 255, 255], [10, 20, 30], [204, 224, 244]]]
    np.testing.assert_array_equal(to_rgb(encoded(Image.fromarray(rgba))), expected)
    np.testing.assert_array_equal(to_rgb(Image.fromarray(rgba)), expected)
    grey = Image.fromarray(np.array([[[0, 0], [9, 255]]], np.uint8), "LA")
    np.testing.assert_array_equal(to_rgb(encoded(grey)), [[[255] * 3, [9] * 3]])


def test_palettes() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(to_rgb(encoded(image)), [[[10, 20, 30], [40, 50, 60]]])
    clear = encoded(image, transparency=0)
    np.testing.assert_array_equal(to_rgb(clear), [[[255, 255, 255], [40, 50, 60]]])
    np.testing.assert_array_equal(to_rgb(encoded(image, "GIF")), [[[10, 20, 30], [40, 50, 60]]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits(kind: str) -> None:
    wide = np.array([[0, 255, 256, 0x1234, 65535]], np.uint16)
    expected = np.repeat((wide >> 8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(to_rgb(encoded(Image.fromarray(wide), kind)), expected)
    np.testing.assert_array_equal(to_rgb(Image.fromarray(wide.astype(np.int32))), expected)


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "PA", "RGBa"])
def test_other_modes(mode: str) -> None:
    assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_digests() -> None:
    image = Image.fromarray(picture())
    assert digest(image) == hashlib.sha256(b"7x5:" + picture().tobytes()).digest()
    assert digest(to_rgb(encoded(image))) == digest(to_rgb(encoded(image, "BMP"))) == digest(image)
    assert digest(Image.new("RGB", (2, 3))) != digest(Image.new("RGB", (3, 2)))
    with pytest.raises(MediaError, match="mode 'L'"):
        digest(image.convert("L"))
