"""Videos of every kind come out as the frames that were asked for, and bombs do not come in."""

import contextlib
import functools
import hashlib
import io
import re
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from hypothesis import given, settings, strategies as st
from PIL import Image

from quire.multimodal.errors import MediaError
from quire.multimodal.videos import NUM_FRAMES, Frames, digest, to_frames

WIDTH, HEIGHT = 64, 48
STEP = 6
"""Between the levels of grey of a frame and the next; codecs are off by less than half of it."""
FILES = [
    ("mp4", "libx264"),
    ("mp4", "mpeg4"),
    ("mov", "mpeg4"),
    ("webm", "libvpx"),
    ("webm", "libvpx-vp9"),
    ("matroska", "libx264"),
    ("avi", "mpeg4"),
    ("avi", "libx264"),
]
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}


def grey(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.full((height, width, 3), index * STEP, np.uint8)


def encoded(
    frames: list[np.ndarray], kind: str, codec: str, rate: int, options: dict[str, str]
) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=kind, options=options) as out:
        stream = out.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return file.getvalue()


@functools.cache
def clip(
    kind: str = "mp4", codec: str = "libx264", count: int = 40, rate: int = 10, **options: str
) -> bytes:
    """A video whose frame i has the level i * STEP."""
    return encoded([grey(i) for i in range(count)], kind, codec, rate, options)


def sound(kind: str, codec: str, cover: bool = False) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as out:
        stream = out.add_stream(codec, rate=8000)
        assert isinstance(stream, av.AudioStream)
        picture = out.add_stream("mjpeg", rate=1) if cover else None
        if isinstance(picture, av.VideoStream):
            picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            out.mux(picture.encode(av.VideoFrame.from_ndarray(grey(9), format="rgb24")))
            out.mux(picture.encode())
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        samples.sample_rate = 8000
        out.mux(stream.encode(samples))
        out.mux(stream.encode())
    return file.getvalue()


def indices(frames: Frames) -> list[int]:
    """Which frames of a clip these are; each must be of one level."""
    pixels = frames.pixels.astype(float)
    assert frames.pixels.dtype == np.uint8
    assert frames.pixels.shape[1:] == (HEIGHT, WIDTH, 3)
    levels = pixels.mean((1, 2, 3))
    assert np.abs(pixels - levels[:, None, None, None]).max() <= 3
    return np.rint(levels / STEP).astype(int).tolist()


@pytest.mark.parametrize(("kind", "codec"), FILES)
def test_files(kind: str, codec: str) -> None:
    data = clip(kind, codec)
    assert indices(to_frames(data, num_frames=-1)) == list(range(40))
    for given_as in (data, bytearray(data), memoryview(data)):
        frames = to_frames(given_as, num_frames=5)
        assert indices(frames) == [0, 9, 19, 29, 39]
        assert frames.fps == pytest.approx(4 / 3.9)
    frames = to_frames(data, fps=2)
    assert indices(frames) == np.linspace(0, 39, 8, dtype=int).tolist()
    assert frames.fps == pytest.approx(7 / 3.9)


def test_fragmented_files() -> None:
    assert indices(to_frames(clip(**FRAGMENTED), num_frames=3)) == [0, 19, 39]


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 40])
def test_how_many_frames_are_taken_by_default(count: int) -> None:
    frames = to_frames(clip(count=count))
    expected = np.linspace(0, count - 1, min(count, NUM_FRAMES), dtype=int).tolist()
    assert indices(frames) == expected
    assert frames.fps == (
        None if count == 1 else pytest.approx(10 * (len(expected) - 1) / (count - 1))
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_frames": 1}, [0]),
        ({"num_frames": 2}, [0, 39]),
        ({"num_frames": 1000}, list(range(40))),
        ({"fps": 0.01}, [0]),
        ({"fps": 1}, [0, 13, 26, 39]),
        ({"fps": 0.99}, [0, 19, 39]),
        ({"fps": 10, "num_frames": -1}, list(range(40))),
        ({"fps": 1e300, "num_frames": -1}, list(range(40))),
        ({"fps": 5, "num_frames": 3}, [0, 19, 39]),
    ],
)
def test_sampling(options: dict[str, Any], expected: list[int]) -> None:
    assert indices(to_frames(clip(), **options)) == expected


def test_a_clock_of_milliseconds_does_not_cost_a_frame() -> None:
    data = clip("webm", "libvpx", count=30, rate=30)
    assert len(to_frames(data, fps=10).pixels) == 10


def test_frames_without_times() -> None:
    data = clip("webm", "libvpx", count=3, rate=100_000)
    frames = to_frames(data)
    assert (len(frames.pixels), frames.fps) == (3, None)
    with pytest.raises(MediaError, match="does not tell when"):
        to_frames(data, fps=1)


def test_colors() -> None:
    for color in ((255, 0, 0), (0, 0, 255), (20, 200, 90)):
        frame = np.full((HEIGHT, WIDTH, 3), color, np.uint8)
        pixels = to_frames(encoded([frame] * 2, "mp4", "libx264", 5, {})).pixels
        assert np.abs(pixels.astype(int) - frame).max() <= 4


def test_gifs() -> None:
    colors = [(0, 0, 0, 0), (255, 0, 0, 255)]
    first, *others = [Image.new("RGBA", (8, 6), color) for color in colors]
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=500, disposal=2)
    frames = to_frames(file.getvalue())
    assert frames.fps == pytest.approx(2)
    np.testing.assert_array_equal(frames.pixels[0], np.full((6, 8, 3), 255))
    np.testing.assert_array_equal(frames.pixels[1], np.full((6, 8, 3), (255, 0, 0)))


@pytest.mark.parametrize("quarters", range(4))
def test_rotation(quarters: int) -> None:
    """As a telephone stores what is to be turned clockwise by so many quarters."""
    stored = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    stored[: HEIGHT // 2, : WIDTH // 2] = 200
    data = bytearray(encoded([stored] * 3, "mp4", "libx264", 10, {}))
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarters]
    one = 1 << 16
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    place = data.find(b"tkhd") + 4 + 40
    assert data[place : place + 4] == struct.pack(">i", one)
    data[place : place + 36] = matrix
    expected = np.rot90(stored, -quarters)
    pixels = to_frames(data).pixels
    assert pixels.shape == (3, *expected.shape)
    assert np.abs(pixels[1].astype(int) - expected).mean() < 3


def test_a_size_that_changes_is_scaled() -> None:
    """As recordings of calls do."""
    parts = [
        encoded([grey(10), grey(10)], "matroska", "libvpx", 10, {}),
        encoded([grey(20, 2 * WIDTH, 2 * HEIGHT)] * 2, "matroska", "libvpx", 10, {}),
    ]
    file = io.BytesIO()
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(av.open(io.BytesIO(part), "r")) for part in parts]
        out = stack.enter_context(av.open(file, "w", format="matroska"))
        stream = out.add_stream_from_template(opened[0].streams.video[0])
        for start, part in zip((0, 200), opened, strict=True):
            for packet in part.demux(video=0):
                if packet.pts is not None:
                    packet.pts = packet.dts = packet.pts + start
                    packet.stream = stream
                    out.mux(packet)
    data = file.getvalue()
    assert indices(to_frames(data)) == [10, 10, 20, 20]
    with pytest.raises(MediaError, match="128x96, and at most 3072 pixels|cannot be decoded"):
        to_frames(data, max_pixels=WIDTH * HEIGHT)


@pytest.mark.parametrize(("kind", "codec"), FILES)
def test_limits_are_exact(kind: str, codec: str) -> None:
    data, size = clip(kind, codec), WIDTH * HEIGHT
    exact: dict[str, Any] = {
        "max_seconds": 3.9,
        "max_frames": 40,
        "max_pixels": size,
        "max_kept_pixels": 4 * size,
        "max_decoded_pixels": 40 * size,
    }
    assert indices(to_frames(data, num_frames=4, **exact)) == [0, 13, 26, 39]
    for name, message in (
        ("max_seconds", "lasts 3.9 seconds or more, and at most 3.8"),
        ("max_frames", "more than 39 frames"),
        ("max_pixels", "frame of 64x48, and at most 3071 pixels"),
        ("max_kept_pixels", "4 frames of 64x48 that are to be kept, and at most 12287 pixels"),
        ("max_decoded_pixels", "122880 pixels to decode, and at most 122879 pixels"),
    ):
        less = exact[name] - (0.1 if name == "max_seconds" else 1)
        with pytest.raises(MediaError, match=message):
            to_frames(data, num_frames=4, **{**exact, name: less})


def patched(data: bytes, tag: bytes, offset: int, value: bytes) -> bytes:
    place = data.index(tag) + 4 + offset
    return data[:place] + value + data[place + len(value) :]


MANY = struct.pack(">I", 1 << 30)
ONE_BYTE_EACH = struct.pack(">II", 1, 1 << 30)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (patched(clip(), b"stsz", 4, ONE_BYTE_EACH), "1073741824 bytes of samples"),
        (patched(clip(), b"stsz", 8, MANY), "tables of 1073741824 samples"),
        (patched(clip(), b"elst", 4, MANY), "1073741824 edits"),
        (patched(clip(**FRAGMENTED), b"trun", 4, MANY), "samples"),
        (patched(clip(), b"udta", -4, b"cmov"), "compressed header"),
        (patched(clip(), b"ftyp", -8, struct.pack(">I", 3)), "cannot be decoded|no frames"),
    ],
)
def test_tables_that_lie_take_no_memory(data: bytes, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        to_frames(data)


def test_tables_are_found_in_odd_places() -> None:
    bomb = struct.pack(">I4s4xII", 20, b"stsz", 1, 1 << 30)
    payload = struct.pack(">I4s", 8 + len(bomb), b"mdat") + bomb
    assert len(to_frames(clip() + payload).pixels) == NUM_FRAMES
    long = struct.pack(">I4sQ", 1, b"mdat", 16 + len(bomb)) + bomb
    assert len(to_frames(clip() + long).pixels) == NUM_FRAMES
    for head in (b"", struct.pack(">I4s", 8 + len(bomb), b"free"), payload, b"\0\0\0\5mdat"):
        with pytest.raises(MediaError, match="of samples of equal size"):
            to_frames(clip() + head + bomb)


def test_samples_that_overlap() -> None:
    """A fragment for each frame, all of which say that it reaches over half of the file."""
    data = clip(count=20, movflags="frag_every_frame+empty_moov+default_base_moof")
    for found in re.finditer(b"tfhd", data):
        assert data[found.end() + 3] & 0x38 == 0x38  # duration, size and flags are told
        place = found.end() + 12
        data = data[:place] + struct.pack(">I", len(data) // 2) + data[place + 4 :]
    with pytest.raises(MediaError, match="overlap"):
        to_frames(data)


@pytest.mark.parametrize("kind", ["m3u8", "concat", "dash", "sdp"])
def test_files_that_name_others_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "secret.mp4"
    path.write_bytes(clip())
    text = {
        "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{path}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile '{path}'\n",
        "dash": f"<?xml version='1.0'?><MPD><BaseURL>file://{path}</BaseURL></MPD>",
        "sdp": "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    }[kind].encode()
    for magic in (b"", b"\0\0\0\x08free", b"RIFF\0\0\0\0AVI ", b"\x1aE\xdf\xa3", b"GIF89a"):
        with pytest.raises(MediaError):
            to_frames(magic + text)
    with pytest.raises(MediaError, match="no video that can be read. Send one of MP4 or MOV"):
        to_frames(text)


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey(3)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (b"", "0 bytes"),
        (b"hello, world", "begin with b'hello, world'"),
        (picture("PNG"), "no video that can be read"),
        (picture("JPEG"), "no video that can be read"),
        (picture("WEBP"), "no video that can be read"),
        (b"\0\0\0\x1cftypavif" + bytes(99), "no video that can be read"),
        (b"RIFF\0\0\0\0WAVEfmt ", "no video that can be read"),
        (sound("mp4", "aac"), "has none in it, but audio"),
        (sound("matroska", "aac"), "has none in it, but audio"),
        (sound("mp4", "aac", cover=True), "has none in it, but audio, video"),
        (clip("matroska", "ffv1", count=2), "coded as ffv1"),
        (clip("mp4", count=1)[:28], "cannot be decoded"),
        (b"\0\0\0\x08mdat" + bytes(99), "cannot be decoded|no frames"),
        ("clip.mp4", "type str"),
        (None, "type NoneType"),
        ([], "no frames"),
        ((), "no frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), "no frames"),
        (np.zeros((2, 0, 4, 3), np.uint8), "Frame 0 of a video: A picture is 4x0"),
        (np.zeros((4, 4, 3), np.uint8), r"shape \(4, 4, 3\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"shape \(2, 3, 4, 4\); allowed is \[T, H, W, 3\]"),
        (np.zeros((2, 4, 4, 4), np.uint8), r"shape \(2, 4, 4, 4\)"),
        (np.zeros((2, 4, 4, 3), np.int64), "dtype int64"),
        (np.full((2, 4, 4, 3), np.nan), "Frame 0 of a video: .* nan"),
        ([grey(1), np.full((4, 4, 3), 7.0)], "Frame 1 of a video: .* 7.0"),
        ([grey(1), grey(1, 32, 24)], "Frame 1 of a video is 32x24 pixels, and frame 0 is 64x48"),
        ([grey(1), "a.png"], "Frame 1 of a video: .* type str"),
    ],
)
def test_what_is_no_video(video: Any, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        to_frames(video)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames is 0"),
        ({"num_frames": -2}, "num_frames is -2"),
        ({"num_frames": 2.5}, "num_frames is 2.5"),
        ({"num_frames": True}, "num_frames is True"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": -1.0}, "fps is -1.0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": float("inf")}, "fps is inf"),
        ({"fps": "2"}, "fps is '2'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MediaError, match=message):
        to_frames(clip(), **options)


def test_frames_are_taken_as_they_are() -> None:
    array = np.stack([grey(i) for i in range(40)])
    pictures = [Image.fromarray(frame) for frame in array]
    files = [picture("PNG"), picture("BMP")]
    for video in (array, list(array), tuple(pictures), array.astype(np.float32) / 255):
        frames = to_frames(video, fps=1)
        np.testing.assert_array_equal(frames.pixels, array)
        assert frames.fps is None
        assert indices(to_frames(video, num_frames=3)) == [0, 19, 39]
    assert indices(to_frames(files)) == [3, 3]


def test_what_was_given_is_left_alone() -> None:
    array = np.stack([grey(i) for i in range(3)])
    array.flags.writeable = False
    for video in (array, list(array)):
        pixels = to_frames(video).pixels
        pixels[:] = 9
        assert array.max() == 2 * STEP


def test_limits_of_frames_in_memory() -> None:
    array, size = np.stack([grey(i) for i in range(3)]), WIDTH * HEIGHT
    assert len(to_frames(array, max_pixels=size, max_kept_pixels=3 * size).pixels) == 3
    with pytest.raises(MediaError, match="64x48 pixels, and at most 3071"):
        to_frames(array, max_pixels=size - 1)
    with pytest.raises(MediaError, match="3 frames of 64x48 that are to be kept"):
        to_frames(array, max_kept_pixels=3 * size - 1)
    assert len(to_frames(array, num_frames=2, max_kept_pixels=2 * size).pixels) == 2


@pytest.mark.parametrize(("kind", "codec"), [*FILES, ("fragmented", "libx264")])
def test_files_that_were_cut(kind: str, codec: str) -> None:
    """Frames of before the cut, or an error; never more than there are, nor in another order."""
    whole = clip(**FRAGMENTED) if kind == "fragmented" else clip(kind, codec)
    came = 0
    for length in np.linspace(0, len(whole) - 1, 24, dtype=int):
        try:
            got = indices_of_cut(to_frames(whole[:length], num_frames=-1))
        except MediaError:
            continue
        assert got[0] == 0
        assert got == sorted(got)
        assert len(got) <= 40
        came += 1
    assert came or kind in ("mp4", "mov")  # whose tables stand at the end


def indices_of_cut(frames: Frames) -> list[int]:
    """By the middle of each frame: the last may be broken below."""
    return np.rint(frames.pixels[:, 0, 0, 0] / STEP).astype(int).tolist()


def survives(data: bytes) -> None:
    try:
        frames = to_frames(data, num_frames=4, max_pixels=1 << 16, max_frames=500)
    except MediaError:
        return
    assert frames.pixels.shape[3] == 3
    assert 1 <= len(frames.pixels) <= 4


MAGICS = [b"", b"\0\0\0\x18ftypisom", b"\x1aE\xdf\xa3", b"RIFF\xff\0\0\0AVI LIST", b"GIF89a"]


@settings(max_examples=60, deadline=None)
@given(magic=st.sampled_from(MAGICS), rest=st.binary(max_size=300))
def test_arbitrary_bytes(magic: bytes, rest: bytes) -> None:
    survives(magic + rest)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_corrupt_files(data: st.DataObject) -> None:
    kind, codec = data.draw(st.sampled_from(FILES))
    broken = bytearray(clip(kind, codec, count=6))
    places = st.integers(0, len(broken) - 1)
    for place, value in data.draw(
        st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)
    ):
        broken[place] = value
    survives(bytes(broken))


def test_digests() -> None:
    array = np.stack([grey(i) for i in range(3)])
    frames = to_frames(array)
    assert digest(frames) == hashlib.sha256(b"3x48x64x3:" + array.tobytes()).digest()
    assert digest(frames) == digest(to_frames(list(array)))
    assert digest(frames) != digest(to_frames(array[:2]))
    assert digest(to_frames(np.zeros((1, 2, 3, 3)))) != digest(to_frames(np.zeros((1, 3, 2, 3))))
