"""Prompts with videos through the whole engine, against tokens of `transformers`."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from quire import Engine, MediaError, OptionError, PromptError, SamplingParams
from tests.engine.vision_models import Cases

CASES = Cases("qwen2_vl")
with np.load(CASES.folder / "expected_video.npz") as file:
    EXPECTED = dict(file)
GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
FEW = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
MARKER = "<|vision_start|><|video_pad|><|vision_end|>"
PICTURE_MARKER = MARKER.replace("video", "image")
PAD = 7


def frames(name: str) -> np.ndarray:
    """uint8 [T, H, W, 3]"""
    return EXPECTED[f"{name}/frames"]


def prompt(name: str) -> dict[str, Any]:
    """Token ids with a placeholder for each feature, the videos and the pictures."""
    names = EXPECTED[f"{name}/pictures"].tolist()
    videos = [frames(one) for one in names if f"{one}/frames" in EXPECTED]
    pictures = [CASES.picture(one) for one in names if f"{one}/frames" not in EXPECTED]
    data = {"image": pictures, "video": videos}
    return {"prompt_token_ids": EXPECTED[f"{name}/prompt"].tolist(), "multi_modal_data": data}


def tokens(engine: Engine, prompts: Any, params: SamplingParams = GREEDY) -> list[list[int]]:
    outputs = engine.generate(prompts, params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def placeholders(engine: Engine, prompts: Any) -> list[int]:
    """How many tokens stand for videos in each."""
    outputs = engine.generate(prompts, FEW, use_tqdm=False)
    return [(output.prompt_token_ids or []).count(PAD) for output in outputs]


def encoded(video: np.ndarray, rate: int = 8) -> bytes:
    """An MP4."""
    file = io.BytesIO()
    with av.open(file, "w", "mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in video:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file.getvalue()


@pytest.fixture(scope="module")
def seeing() -> Iterator[Engine]:
    """An engine that cuts prompts within videos: steps are shorter than most of them."""
    sizes = {"max_num_batched_tokens": 24, "max_num_seqs": 8, "page_size": 8}
    limits = {"limit_mm_per_prompt": {"video": 2}}
    with Engine(CASES.folder, **CASES.options, **sizes, **limits) as engine:
        yield engine


def test_tokens_of_a_mixed_batch_cold_and_cached(seeing: Engine) -> None:
    prompts = [prompt("clip"), *CASES.prompts(), prompt("mixed")]
    expected = [
        EXPECTED["clip/greedy"].tolist(),
        *CASES.greedy(),
        EXPECTED["mixed/greedy"].tolist(),
    ]
    seeing.reset_prefix_cache()
    for _ in range(2):
        assert tokens(seeing, prompts) == expected
        seeing._running.replicas[0].scheduler.check_integrity()


def test_a_video_is_encoded_group_by_group(seeing: Engine) -> None:
    """So no program is as large as a whole video."""
    spec = seeing._running.spec.media
    assert spec is not None
    videos = spec.kinds["video"]
    assert videos.max_part_tokens < videos.max_tokens
    assert list(spec.encoders) == ["image"]


def test_every_form_of_a_video(seeing: Engine) -> None:
    ids = {"prompt_token_ids": prompt("clip")["prompt_token_ids"]}
    video = frames("long")
    forms: list[Any] = [
        video,
        [video],
        list(video),
        [Image.fromarray(frame) for frame in video],
        video.astype(np.float32) / 255,
    ]
    prompts = [{**ids, "multi_modal_data": {"video": form}} for form in forms]
    assert tokens(seeing, prompts) == [EXPECTED["clip/greedy"].tolist()] * len(forms)


def test_files(seeing: Engine, tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    path.write_bytes(encoded(frames("long")))
    asked = [
        {"prompt": MARKER, "multi_modal_data": {"video": given}}
        for given in (path, str(path), path.read_bytes(), frames("long"))
    ]
    assert placeholders(seeing, asked) == [36] * 4


def test_fewer_frames_of_a_file(seeing: Engine) -> None:
    video = {"video": encoded(np.repeat(frames("long"), 8, axis=0))}  # 40 frames in 5 seconds
    asked = [
        {"prompt": MARKER, "multi_modal_data": video, "mm_processor_kwargs": settings}
        for settings in ({"num_frames": 4}, {"fps": 1}, {"num_frames": 4, "fps": 8.0})
    ]
    assert placeholders(seeing, asked) == [24, 36, 24]
    with pytest.raises(MediaError, match="fps=0 must be a number above 0"):
        seeing.generate({**asked[0], "mm_processor_kwargs": {"fps": 0}})
    with pytest.raises(OptionError, match="num_frames=0 must be 1 or more"):
        Engine(CASES.folder, mm_processor_kwargs={"num_frames": 0})


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"video": []}, PromptError, "1 video placeholders .* for 0 videos"),
        ({"video": ["short"] * 2}, PromptError, "1 video placeholders .* for 2 videos"),
        ({"video": ["short"] * 3}, PromptError, "3 videos, and limit_mm_per_prompt allows 2"),
        ({"image": ["short"]}, MediaError, "shape"),
        ({"audio": np.zeros(800)}, PromptError, "'audio', and this model takes pictures and vide"),
        ({"video": b"no video"}, MediaError, "no video that can be read"),
        ({"video": "nowhere.mp4"}, MediaError, "'nowhere.mp4' cannot be read"),
        ({"video": np.zeros((0, 8, 8, 3), np.uint8)}, MediaError, "no frames"),
        ({"video": np.full((2, 8, 8, 3), np.nan)}, MediaError, "Frame 0 of a video"),
    ],
)
def test_what_is_refused(seeing: Engine, data: Any, error: type[Exception], message: str) -> None:
    data = {
        kind: [frames(name) if name == "short" else name for name in given]
        if isinstance(given, list)
        else given
        for kind, given in data.items()
    }
    with pytest.raises(error, match=message):
        seeing.generate({"prompt": MARKER, "multi_modal_data": data})


def test_truncated_files(seeing: Engine) -> None:
    whole = encoded(frames("long"))
    for length in (20, len(whole) // 2):  # its tables are at the end
        with pytest.raises(MediaError):
            seeing.generate({"prompt": MARKER, "multi_modal_data": {"video": whole[:length]}})
    assert placeholders(seeing, {"prompt": MARKER, "multi_modal_data": {"video": whole}}) == [36]


def test_videos_in_conversations(seeing: Engine) -> None:
    parts = [
        {"type": "image_pil", "image_pil": CASES.picture("small")},
        {"type": "video", "video": frames("short")},
        {"type": "text", "text": "a"},
    ]
    [output] = seeing.chat([{"role": "user", "content": parts}], FEW, use_tqdm=False)
    text = seeing.get_tokenizer().decode(output.prompt_token_ids)
    shown = PICTURE_MARKER.replace("<|image_pad|>", "<|image_pad|>" * 6)
    shown += MARKER.replace("<|video_pad|>", "<|video_pad|>" * 16)
    assert shown in text


def test_nothing_compiles_after_the_start(seeing: Engine) -> None:
    assert seeing.wait_until_ready(240)
    compiled = seeing.stats().programs_compiled
    seeing.reset_prefix_cache()
    with seeing._lock:
        seeing._running.replicas[0].features.clear()
    tokens(seeing, [prompt("clip"), prompt("mixed")], FEW)
    assert seeing.stats().programs_compiled == compiled
