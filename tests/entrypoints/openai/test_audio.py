"""Sounds in chats: OpenAI's client against a live server with a small Qwen2-Audio."""

import base64
import http.server
import io
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile
from tests.engine.vision_models import RATE, SoundCases
from tests.live_server import SMALL, live_server

from quire import Engine, SamplingParams

pytestmark = pytest.mark.slow

CASES = SoundCases()
FLAGS = ("--model", str(CASES.folder), "--served-model-name", "hearing", "--dtype", "float32")
FETCHING = ("--allow-private-media-addresses", "--limit-mm-per-prompt", '{"audio": 2}')
ASK = {"type": "text", "text": "What is it?"}
BODY: dict[str, Any] = {"model": "hearing", "temperature": 0, "max_tokens": 8}


def encoded(samples: np.ndarray, form: str = "WAV", rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form)
    return file.getvalue()


SHORT = CASES.samples("short")
SOUND = encoded(SHORT)


def sound(data: bytes, form: str = "wav") -> dict[str, Any]:
    """A part of a message, with the sound in it."""
    text = base64.b64encode(data).decode()
    return {"type": "input_audio", "input_audio": {"data": text, "format": form}}


def link(url: str) -> dict[str, Any]:
    return {"type": "audio_url", "audio_url": {"url": url}}


class Sounds(http.server.BaseHTTPRequestHandler):
    """Has a sound at each path."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(SOUND)))
        self.end_headers()
        self.wfile.write(SOUND)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sounds) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def hearing() -> Iterator[str]:
    with live_server(*FLAGS, *FETCHING, *SMALL) as address:
        yield address


@pytest.fixture(scope="module")
def offline() -> str:
    """What the engine says of the sound without a server."""
    parts = [{"type": "audio", "audio": (SHORT, RATE)}, ASK]
    params = SamplingParams(temperature=0, max_tokens=8)
    with Engine(CASES.folder, dtype="float32", enforce_eager=True) as engine:
        [output] = engine.chat([{"role": "user", "content": parts}], params, use_tqdm=False)
    return output.outputs[0].text


def said(address: str, *parts: Any) -> str:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="EMPTY", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": list(parts)}]
        answer = client.chat.completions.create(**BODY, messages=messages)
    text = answer.choices[0].message.content
    assert text is not None
    return text


def error_of(address: str, status: int, *parts: Any) -> dict[str, Any]:
    body = {**BODY, "messages": [{"role": "user", "content": list(parts)}]}
    response = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == status, response.text
    return response.json()["error"]


def test_every_way_to_send_a_sound(hearing: str, web: str, offline: str) -> None:
    data = base64.b64encode(SOUND).decode()
    for part in (
        sound(SOUND),
        {"type": "input_audio", "input_audio": {"data": data}},
        {"input_audio": {"data": data, "format": "wav"}},
        sound(encoded(SHORT, "FLAC"), "flac"),
        link(f"data:audio/wav;base64,{data}"),
        link(f"{web}/short.wav"),
        {"type": "audio_url", "audio_url": f"{web}/short.wav"},
    ):
        assert said(hearing, part, ASK) == offline


@pytest.mark.parametrize("form", ["mp3", "ogg"])
def test_formats_that_lose_something(hearing: str, form: str) -> None:
    assert len(said(hearing, sound(encoded(SHORT, form.upper()), form), ASK)) > 0


def test_two_sounds_and_a_third(hearing: str) -> None:
    other = sound(encoded(CASES.samples("odd")))
    assert said(hearing, sound(SOUND), other, ASK) != said(hearing, other, sound(SOUND), ASK)
    error = error_of(hearing, 400, sound(SOUND), other, other)
    assert "3 sounds, and limit_mm_per_prompt allows 2" in error["message"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"Some text.", "10 bytes that begin with b'Some tex' are no sound that can be read"),
        (encoded(SHORT, "FLAC")[:2000], "cannot be decoded"),
        (encoded(SHORT)[:44], "no samples"),
        (encoded(SHORT[:200]), "too short"),
    ],
    ids=["text", "truncated", "empty", "short"],
)
def test_broken_sounds(hearing: str, data: bytes, message: str, offline: str) -> None:
    error = error_of(hearing, 422, sound(data), ASK)
    assert message in error["message"]
    assert error["param"] == "messages"
    assert said(hearing, sound(SOUND), ASK) == offline


@pytest.mark.parametrize(
    "given",
    [None, {}, "AAAA", {"data": ""}, {"data": 7}, {"data": "AAAA", "format": "midi"}],
)
def test_a_part_without_a_sound(hearing: str, given: Any) -> None:
    error = error_of(hearing, 400, ASK, {"type": "input_audio", "input_audio": given})
    assert error["param"] == "messages[0].content[1]"
    assert "must have a sound in base64" in error["message"]


def test_pictures_are_refused(hearing: str) -> None:
    for part in ({"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "video_url"}):
        assert "takes text or input_audio" in error_of(hearing, 400, part)["message"]


def test_a_model_whose_template_takes_text_alone() -> None:
    """Marks are put into the text, and found there, by Ultravox too."""
    cases = SoundCases("ultravox")
    samples = cases.samples("long")
    parts = [{"type": "audio", "audio": (samples, RATE)}, ASK]
    params = SamplingParams(temperature=0, max_tokens=8)
    with Engine(cases.folder, dtype="float32", enforce_eager=True) as engine:
        [output] = engine.chat([{"role": "user", "content": parts}], params, use_tqdm=False)
    with live_server("--model", str(cases.folder), *FLAGS[2:], *SMALL) as address:
        assert said(address, sound(encoded(samples)), ASK) == output.outputs[0].text
        error = error_of(address, 422, sound(encoded(samples)[:44]), ASK)
        assert "no samples" in error["message"]
