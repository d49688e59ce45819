"""Videos in chats: OpenAI's client against a live server with a small Qwen2-VL."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from tests.engine.test_video import CASES, encoded, frames
from tests.live_server import SMALL, live_server

from quire import Engine, SamplingParams

pytestmark = pytest.mark.slow

FLAGS = ("--model", str(CASES.folder), "--served-model-name", "seeing", "--dtype", "float32")
ASK = {"type": "text", "text": "a"}
BODY: dict[str, Any] = {"model": "seeing", "temperature": 0, "max_tokens": 8}
VIDEO = encoded(frames("long"))


def url_of(data: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def video(data: bytes) -> dict[str, Any]:
    """A part of a message."""
    return {"type": "video_url", "video_url": {"url": url_of(data)}}


def image(frame: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    url = url_of(file.getvalue(), "image/png")
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.fixture(scope="module")
def seeing() -> Iterator[str]:
    with live_server(*FLAGS, "--limit-mm-per-prompt", '{"video": 1}', *SMALL) as address:
        yield address


def ask(address: str, *parts: Any, **more: Any) -> Any:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="EMPTY", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": list(parts)}]
        return client.chat.completions.create(**BODY, messages=messages, **more)


def error_of(address: str, status: int, *parts: Any) -> dict[str, Any]:
    body = {**BODY, "messages": [{"role": "user", "content": list(parts)}]}
    response = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == status, response.text
    return response.json()["error"]


def test_a_video_is_answered_as_offline(seeing: str) -> None:
    messages = [{"role": "user", "content": [{"type": "video", "video": VIDEO}, ASK]}]
    params = SamplingParams(temperature=0, max_tokens=8)
    with Engine(CASES.folder, dtype="float32", enforce_eager=True) as engine:
        [output] = engine.chat(messages, params, use_tqdm=False)
    answer = ask(seeing, video(VIDEO), ASK)
    assert answer.choices[0].message.content == output.outputs[0].text
    assert answer.usage.prompt_tokens == len(output.prompt_token_ids or ())


def test_fewer_frames(seeing: str) -> None:
    whole = ask(seeing, video(VIDEO), ASK).usage.prompt_tokens
    fewer = ask(seeing, video(VIDEO), ASK, extra_body={"mm_processor_kwargs": {"num_frames": 2}})
    assert whole - fewer.usage.prompt_tokens == 24


def test_frames_as_pictures(seeing: str) -> None:
    parts = [image(frame) for frame in frames("short")]
    assert ask(seeing, *parts, ASK).choices[0].message.content is not None


def test_what_is_refused(seeing: str) -> None:
    assert "2 videos, and limit" in error_of(seeing, 400, video(VIDEO), video(VIDEO))["message"]
    assert "no video that can be read" in error_of(seeing, 422, video(b"Some text."))["message"]
    assert "cannot be decoded" in error_of(seeing, 422, video(VIDEO[:500]))["message"]
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    assert "takes text or image_url or video_url" in error_of(seeing, 400, sound)["message"]
    assert ask(seeing, video(VIDEO), ASK).usage.completion_tokens == 8
