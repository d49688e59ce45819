"""Whatever a request gives as a video, as RGB frames of 8 bits that are safe to work with.

A file is walked over before anything is decoded, so what its header says of its length is never
trusted. A file that was cut gives what comes before the cut where its container allows, as players
do; one that is corrupt is refused.
"""

import contextlib
import dataclasses
import hashlib
import io
import math
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import av
import numpy as np
from av.container import Flags, InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from . import images
from .errors import MediaError
from .images import MAX_PIXELS, ImageInput

VideoInput = bytes | bytearray | memoryview | np.ndarray | Sequence[ImageInput]

NUM_FRAMES = 32
"""How many frames of a file are taken where nothing is said."""
MAX_SECONDS = 3600.0
MAX_FRAMES = 200_000
"""Frames of a file, of which few are kept; an hour at 50 a second has 180,000."""
MAX_KEPT_PIXELS = 4 * MAX_PIXELS
"""Of all frames that are kept: 32 of 4K, which are 768 MiB of RGB."""
MAX_DECODED_PIXELS = 1 << 37
"""Of all frames that are decoded on the way: an hour of 720p, or half an hour of 1080p."""
CONTAINERS = ("MP4 or MOV", "WebM or Matroska", "AVI", "GIF")
"""Only these demuxers see bytes of a request; others of FFmpeg open files and URLs, or are rare."""
CODECS = (
    *("h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video"),
    *("mjpeg", "prores", "gif"),
)
"""Only these decoders see bytes of a request, by FFmpeg's names. None of them is of sound."""

_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_PICTURE_BRANDS = (b"avif", b"heic", b"heix", b"mif1")
"""Brands of pictures in the container of MP4."""
_MAX_SAMPLES = 1 << 20
"""Samples that the tables of an MP4 may name, those of sound included."""
_MAX_EDITS = 16
_TABLES = re.compile(rb"stsz(?=.{4}(.{8}))|trun(?=.{4}(.{4}))|elst(?=.{4}(.{4}))|cmov", re.DOTALL)
_MARGIN = 1 << 16
_CLOCK_ERROR = 0.01
"""Of a frame: containers round times, mostly to milliseconds."""


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
    """Frames of a video in the order in which they are shown, at least one."""

    pixels: np.ndarray
    """uint8 [T, H, W, 3], RGB; its own."""
    fps: float | None
    """Frames of `pixels` per second of the video, on average; None where that is not known, as for
    frames that were given without a file, and for a single frame."""


@dataclasses.dataclass(frozen=True)
class _Limits:
    seconds: float
    frames: int
    pixels: int
    kept_pixels: int
    decoded_pixels: int


def to_frames(
    video: VideoInput,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    max_seconds: float = MAX_SECONDS,
    max_frames: int = MAX_FRAMES,
    max_pixels: int = MAX_PIXELS,
    max_kept_pixels: int = MAX_KEPT_PIXELS,
    max_decoded_pixels: int = MAX_DECODED_PIXELS,
) -> Frames:
    """The frames sampled from `video`, which is left as it is.

    `video` is an encoded file (its bytes decide the container), an array [T, H, W, 3], uint8 or
    float in 0..1, or a list or tuple of what `images.to_rgb` takes, all of one size.

    Taken are `num_frames` frames, spread evenly from the first to the last, or all if there are
    fewer. -1 means all; None means NUM_FRAMES of a file, and all of what is given as frames. With
    `fps`, no more are taken than that many for each second; that is for files only, since frames
    alone have no rate. Frames are upright as the file says; a picture that changes its size midway
    is scaled to the size of the first frame that is taken.

    Raises MediaError for anything else, for videos that are empty, broken or beyond a limit, and
    for options out of range. Blocks for as long as decoding takes: call it from a thread.
    """
    _check_sampling(num_frames, fps)
    limits = _Limits(max_seconds, max_frames, max_pixels, max_kept_pixels, max_decoded_pixels)
    if isinstance(video, bytes | bytearray | memoryview):
        file = _File(bytes(video), limits)
        return file.sampled(NUM_FRAMES if num_frames is None else num_frames, fps)
    if isinstance(video, np.ndarray):
        _check_array(video)
    elif not isinstance(video, list | tuple):
        raise MediaError(
            f"A video is of type {type(video).__name__}; allowed are the bytes of a file, a numpy "
            "array [T, H, W, 3] and a list of pictures. Read files and fetch URLs first."
        )
    return Frames(_from_pictures(video, -1 if num_frames is None else num_frames, limits), None)


def digest(frames: Frames) -> bytes:
    """SHA-256 of the shape and the pixels: equal for equal frames, however sent."""
    pixels = frames.pixels
    hashed = hashlib.sha256(("x".join(map(str, pixels.shape)) + ":").encode())
    hashed.update(np.ascontiguousarray(pixels))
    return hashed.digest()


class _File:
    """An encoded video. It is opened twice: once to count, and once to decode."""

    def __init__(self, data: bytes, limits: _Limits) -> None:
        """Raises MediaError where the first bytes or the tables tell enough."""
        self.data, self.limits = data, limits
        self.container = _container(data)
        if self.container == "mov":
            _check_tables(data)

    def sampled(self, num_frames: int, fps: float | None) -> Frames:
        total, span = self._counted()
        count = total if num_frames == -1 else min(num_frames, total)
        if fps is not None and total > 1:
            if not span:
                raise MediaError(
                    "A video does not tell when its frames are shown, so fps cannot be followed. "
                    "Give num_frames alone."
                )
            seconds = span * total / (total - 1)
            count = min(count, max(1, math.floor(seconds * fps + _CLOCK_ERROR)))
        pixels = self._decoded(_spread(total, count))
        return Frames(pixels, (count - 1) / span if count > 1 and span else None)

    def _counted(self) -> tuple[int, float]:
        """How many frames there are, and the seconds from the first to the last; nothing is decoded
        but the few frames in which FFmpeg looks for the size."""
        total, size, first, last = 0, 0, math.inf, -math.inf
        with self._opened() as (file, stream):
            for packet in _packets(file, stream):
                total, size = total + 1, size + packet.size
                ticks = packet.dts if packet.pts is None else packet.pts
                if ticks is not None:
                    time = float(ticks * packet.time_base)
                    first, last = min(first, time), max(last, time)
                self._check_length(total, last - first, size)
            self._check_decoded(total * stream.width * stream.height)
        if not total:
            raise self._empty()
        return total, max(0.0, last - first)

    def _decoded(self, indices: Sequence[int]) -> np.ndarray:
        """uint8 [T, H, W, 3] of the frames at ascending `indices`; fewer where the file ends."""
        pixels, size, turns, filled, walked = None, (0, 0), 0, 0, 0
        with self._opened() as (file, stream):
            for index, frame in enumerate(_decode(file, stream)):
                walked += self._check_size(frame.width, frame.height)
                self._check_decoded(walked)
                if index != indices[filled]:
                    continue
                if pixels is None:
                    size, turns = (frame.width, frame.height), round(frame.rotation / 90)
                    pixels = _empty_pixels(len(indices), *size, turns, self.limits)
                pixels[filled] = np.rot90(_rgb(frame, *size), turns)
                filled += 1
                if filled == len(indices):
                    break
        if pixels is None:
            raise self._empty()
        return pixels[:filled]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        """The container and its first video; whatever FFmpeg raises within is a MediaError."""
        # decoders work on whole blocks with margins, so they see a little more than is shown
        safe = {"max_pixels": str(2 * self.limits.pixels + _MARGIN), "threads": "1"}
        options = safe | {
            "codec_whitelist": ",".join(CODECS),
            "max_streams": "64",
            "protocol_whitelist": "",
        }
        try:
            with av.open(
                io.BytesIO(self.data), "r", self.container, options, io_open=_refuse
            ) as file:
                file.flags &= ~Flags.gen_pts.value  # it would hold packets back
                stream = _video(file)
                self._check_size(stream.width, stream.height)
                stream.codec_context.thread_count = 1
                stream.codec_context.options = safe
                yield file, stream
        except MediaError:
            raise
        except Exception as error:  # hostile bytes raise nearly anything
            reason = error.strerror if isinstance(error, FFmpegError) else type(error).__name__
            raise MediaError(
                f"A video ({self.container}, {len(self.data)} bytes) cannot be decoded: {reason}. "
                "Send the whole file, not corrupted."
            ) from None

    def _check_size(self, width: int, height: int) -> int:
        _check_pixels(f"a frame of {width}x{height}", width * height, self.limits.pixels)
        return width * height

    def _check_decoded(self, pixels: int) -> None:
        _check_pixels(f"{pixels} pixels to decode", pixels, self.limits.decoded_pixels)

    def _check_length(self, frames: int, seconds: float, size: int) -> None:
        if frames > self.limits.frames:
            raise MediaError(
                f"A video has more than {self.limits.frames} frames, which is the most that is "
                "allowed. Send a shorter one, or its parts."
            )
        if seconds > self.limits.seconds:
            raise MediaError(
                f"A video lasts {seconds:g} seconds or more, and at most {self.limits.seconds:g} "
                "are allowed. Send a shorter one, or its parts."
            )
        if size > 2 * len(self.data):
            raise MediaError(
                f"A video of {len(self.data)} bytes has frames of more than twice as many: they "
                "overlap. Encode it anew."
            )

    def _empty(self) -> MediaError:
        return MediaError(
            f"A video ({self.container}, {len(self.data)} bytes) has no frames; it must have at "
            "least one. Send the whole file."
        )


def _check_sampling(num_frames: int | None, fps: float | None) -> None:
    """Also of the types: the values may come from a request."""
    whole = isinstance(num_frames, int) and not isinstance(num_frames, bool)
    if num_frames is not None and not (whole and (num_frames == -1 or num_frames > 0)):
        raise MediaError(
            f"num_frames is {num_frames!r}; give a whole number above 0, or -1 for all frames."
        )
    real = isinstance(fps, int | float) and not isinstance(fps, bool)
    if fps is not None and not (real and 0 < fps < math.inf):
        raise MediaError(f"fps is {fps!r}; give a number above 0, or leave it out.")


def _check_pixels(what: str, pixels: int, allowed: int) -> None:
    if pixels > allowed:
        raise MediaError(
            f"A video has {what}, and at most {allowed} pixels are allowed. Send a smaller or "
            "shorter one, or take fewer frames of it."
        )


def _container(data: bytes) -> str:
    """FFmpeg's name of the demuxer; it never guesses, since some that it knows open files."""
    if data[4:8] in _MP4_BOXES and data[8:12] not in _PICTURE_BRANDS:
        return "mov"
    if data.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "avi"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    raise MediaError(
        f"{len(data)} bytes that begin with {data[:12]!r} are no video that can be read. Send one "
        f"of {', '.join(CONTAINERS)}."
    )


def _check_tables(data: bytes) -> None:
    """Raises MediaError where tables of an MP4 name more than the file can hold.

    FFmpeg takes memory for each sample that a table names, and a few bytes can name billions. The
    tables are looked for wherever there is no payload, since FFmpeg also finds them in odd places.
    """
    samples = edits = constant = 0
    for part in _but_payload(data):
        for found in _TABLES.finditer(part):
            sized, run, edit = found.groups()
            size, count = struct.unpack(">II", sized) if sized else (0, 0)
            constant += size * count
            samples += 0 if size else count
            samples += int.from_bytes(run or b"")
            edits += int.from_bytes(edit or b"")
            if found[0] == b"cmov":
                raise MediaError("A video has a compressed header. Encode it as a usual MP4.")
    if samples > _MAX_SAMPLES or constant > len(data) or edits > _MAX_EDITS:
        raise MediaError(
            f"A video of {len(data)} bytes has tables of {samples} samples, {edits} edits and "
            f"{constant} bytes of samples of equal size; allowed are {_MAX_SAMPLES}, {_MAX_EDITS} "
            "and no more than the file has. Encode it anew."
        )


def _but_payload(data: bytes) -> Iterator[bytes]:
    """The boxes of an MP4 but those of frames, `mdat`; all that is left where it is malformed."""
    start = 0
    while start + 8 <= len(data):
        size, head = int.from_bytes(data[start : start + 4]), 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16]), 16
        end = start + size if size >= head else len(data)
        if size < head and size != 0 or data[start + 4 : start + 8] != b"mdat":
            yield data[start:end]
        start = end


def _refuse(*_: Any) -> NoReturn:
    """What FFmpeg calls to open anything that a file names."""
    raise MediaError("A video names another file or URL. Send one that is complete in itself.")


def _video(file: InputContainer) -> VideoStream:
    """The first video, the others switched off. Covers of sounds are not videos."""
    covers = Disposition.attached_pic
    videos = [stream for stream in file.streams.video if not stream.disposition & covers]
    if not videos:
        kinds = ", ".join(sorted({stream.type for stream in file.streams})) or "nothing"
        raise MediaError(
            f"A file sent as a video has none in it, but {kinds}. Send sounds and pictures as such."
        )
    context = videos[0].codec_context
    name = context.codec.name if context else "unknown"
    if name not in CODECS:
        raise MediaError(
            f"A video is coded as {name}; allowed are {', '.join(CODECS)}. Encode it anew."
        )
    for stream in file.streams:
        if stream is not videos[0]:
            stream.discard = Discard.all
    return videos[0]


def _packets(file: InputContainer, stream: VideoStream) -> "Iterator[Packet[VideoStream]]":
    """Coded frames, up to the end or to where the file was cut."""
    for packet in file.demux(stream):
        if packet.is_corrupt:
            return
        if packet.size:  # the last has none, as has one that repeats a frame
            yield packet


def _decode(file: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    for packet in _packets(file, stream):
        yield from stream.decode(packet)
    yield from stream.decode(None)


def _spread(total: int, count: int) -> list[int]:
    """`count` indices, at most `total`, from the first to the last as vLLM spreads them."""
    if count == total:
        return list(range(total))
    return np.linspace(0, total - 1, count, dtype=int).tolist()


def _empty_pixels(count: int, width: int, height: int, turns: int, limits: _Limits) -> np.ndarray:
    """uint8 [count, H, W, 3] of frames that are turned by quarters."""
    what = f"{count} frames of {width}x{height} that are to be kept"
    _check_pixels(what, count * width * height, limits.kept_pixels)
    shape = (width, height) if turns % 2 else (height, width)
    return np.empty((count, *shape, 3), np.uint8)


def _rgb(frame: VideoFrame, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, 3]; alpha is composited on white, as in pictures."""
    if any(component.is_alpha for component in frame.format.components):
        rgba = frame.to_ndarray(format="rgba", width=width, height=height, threads=1)
        return np.asarray(images.to_rgb(Image.fromarray(rgba.astype(np.uint8, copy=False))))
    return frame.to_ndarray(format="rgb24", width=width, height=height, threads=1)


def _check_array(video: np.ndarray) -> None:
    if video.ndim != 4 or video.shape[3] != 3:
        raise MediaError(
            f"A video array has shape {video.shape}; allowed is [T, H, W, 3]. Move the channels "
            "last and leave out the batch."
        )


def _from_pictures(
    video: Sequence[ImageInput] | np.ndarray, num_frames: int, limits: _Limits
) -> np.ndarray:
    """uint8 [T, H, W, 3] of pictures of one size."""
    total = len(video)
    if not total:
        raise MediaError("A video has no frames; it must have at least one. Leave it out.")
    indices = _spread(total, total if num_frames == -1 else min(num_frames, total))
    pixels = None
    for place, index in enumerate(indices):
        try:
            picture = images.to_rgb(video[index], limits.pixels)
        except MediaError as error:
            raise MediaError(f"Frame {index} of a video: {error}") from None
        if pixels is None:
            pixels = _empty_pixels(len(indices), *picture.size, 0, limits)
        height, width = pixels.shape[1:3]
        if picture.size != (width, height):
            raise MediaError(
                f"Frame {index} of a video is {picture.width}x{picture.height} pixels, and frame 0 "
                f"is {width}x{height}. Give all frames one size."
            )
        pixels[place] = picture
    assert pixels is not None  # there is at least one index
    return pixels
