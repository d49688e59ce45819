"""Whatever a request gives as a picture, as an RGB picture of 8 bits that is safe to work with.

Alpha is composited on white: the colour below a transparent pixel is arbitrary, mostly black. The
image processors of transformers drop alpha instead (`Image.convert("RGB")`), so a transparent
picture looks different there.
"""

import hashlib
import io

import numpy as np
from PIL import Image

from .errors import MediaError

ImageInput = bytes | bytearray | memoryview | Image.Image | np.ndarray

MAX_PIXELS = 1 << 26
"""64 million pixels are 192 MiB of RGB. Pillow itself warns from 89 million."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Only these decoders see bytes of a request; others of Pillow run programs or are seldom used."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation that EXIF can name."""


def to_rgb(image: ImageInput, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB picture of its own, upright as EXIF says, of `image`, which is left as it is.

    `image` is an encoded file (its bytes decide the format, the first frame counts), a picture of
    Pillow, or an array [H, W, 3], uint8 or float in 0..1. Raises MediaError for anything else, and
    for pictures that are empty, broken, or larger than `max_pixels`: no pixel is decoded then.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image, max_pixels)
    if isinstance(image, Image.Image):
        return _upright_rgb(image, max_pixels)
    if isinstance(image, bytes | bytearray | memoryview):
        with _opened(bytes(image), max_pixels) as file:
            return _upright_rgb(file, max_pixels)
    raise MediaError(
        f"An image is of type {type(image).__name__}; allowed are the bytes of a file, a PIL.Image "
        "and a numpy array [H, W, 3]. Read files and fetch URLs first."
    )


def digest(image: Image.Image) -> bytes:
    """SHA-256 of an RGB picture's size and pixels: equal for equal pictures, however sent."""
    if image.mode != "RGB":
        raise MediaError(f"A digest is of an RGB picture, not of mode {image.mode!r}; use to_rgb.")
    hashed = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    hashed.update(image.tobytes())
    return hashed.digest()


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    """Only the header is read. Raises MediaError for no picture and for a bomb."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("more", max_pixels) from None
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise MediaError(
            f"{len(data)} bytes that begin with {data[:8]!r} are no picture that can be read "
            f"({type(error).__name__}). Send one of {', '.join(FORMATS)}."
        ) from None


def _upright_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    _check_size(*image.size, max_pixels)
    try:
        image.load()
        turn = _TURNS.get(_orientation(image))
        rgb = _flat_rgb(image)
    except MediaError:
        raise
    except Exception as error:  # as above: truncated and corrupt data raise by format
        raise MediaError(
            f"A picture ({image.format or 'of Pillow'}, {image.width}x{image.height}) cannot be "
            f"decoded: {error}. Send the whole file, not corrupted."
        ) from None
    return rgb if turn is None else rgb.transpose(turn)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise MediaError(f"A picture is {width}x{height} pixels; send one of at least 1x1.")
    if width * height > max_pixels:
        raise _too_large(f"{width}x{height}", max_pixels)


def _too_large(size: str, max_pixels: int) -> MediaError:
    return MediaError(
        f"A picture has {size} pixels, and at most {max_pixels} are allowed. Send a smaller one."
    )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a picture with broken EXIF is shown as it is stored, as viewers do
        return 1


def _flat_rgb(image: Image.Image) -> Image.Image:
    """RGB of 8 bits, alpha composited on white; 16-bit grey keeps its upper 8 bits."""
    if image.mode.startswith("I"):  # "I" is what some files of 16 bits are read as
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise MediaError(
            "A picture of Pillow has mode 'F', whose range is not known. Give an array "
            "[H, W, 3] with values in 0..1."
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    if array.ndim != 3 or array.shape[2] != 3:
        raise MediaError(
            f"An image array has shape {array.shape}; allowed is [H, W, 3]. Move the channels "
            "last and leave out the batch."
        )
    _check_size(array.shape[1], array.shape[0], max_pixels)
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if not np.issubdtype(array.dtype, np.floating):
        raise MediaError(
            f"An image array has dtype {array.dtype}; allowed are uint8 in 0..255 and floats in "
            "0..1. Convert it."
        )
    values = array.astype(np.float32)
    if not (values.min() >= 0 and values.max() <= 1):  # also where one is not a number
        raise MediaError(
            f"An image array of floats reaches from {values.min()} to {values.max()}; allowed is "
            "0..1. Divide by 255, or undo a normalization."
        )
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))
