"""Pictures in chats: OpenAI's client against live servers with the demo model that sees."""

import asyncio
import base64
import contextlib
import http.server
import io
import json
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
from PIL import Image, ImageDraw
from starlette.requests import Request
from tests.live_server import SMALL, live_server
from tests.test_seeds import DEMO

from quire import AsyncEngine
from quire.entrypoints.openai.chat import create_chat_completion
from quire.entrypoints.openai.options import ServerOptions
from quire.entrypoints.openai.protocol import ChatCompletionRequest
from quire.entrypoints.openai.service import Service
from quire.entrypoints.openai.streams import ClientGoneError

from .demo_api import refusal

pytestmark = pytest.mark.slow

MODEL = DEMO.parent / "vision_demo"
FLAGS = ("--model", str(MODEL), "--served-model-name", "seeing", "--dtype", "float32", *SMALL)
"""In float32 answers do not depend on what else is computed."""
TOKENS = 78
"""Of a square picture."""
PLACEHOLDER = 2
"""Each of them in prompts."""
ASK = {"type": "text", "text": "What is in the picture?"}
GREET = "Hello"
GREETED = "Hello! Show me a picture."
CHAT = "/v1/chat/completions"


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def shape(outline: str, colour: str) -> Image.Image:
    picture = Image.new("RGB", (96, 96), "white")
    getattr(ImageDraw.Draw(picture), outline)((20, 20, 76, 76), fill=colour)
    return picture


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image(url: object, **more: Any) -> dict[str, Any]:
    """A part of a message."""
    return {"type": "image_url", "image_url": {"url": url, **more}}


def which_is(number: str) -> dict[str, Any]:
    """Asks for the first or the second picture."""
    return {"type": "text", "text": f"What is in the {number} picture?"}


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def empty_png(side: int) -> bytes:
    """The bytes of a square that claims so many pixels, and has none."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


RED = encoded(shape("ellipse", "red"))
BLUE = encoded(shape("rectangle", "blue"))
RED_URL, BLUE_URL = data_url(RED), data_url(BLUE)
RED_SEEN, BLUE_SEEN = "A red circle.", "A blue square."
HUGE, LARGE = empty_png(50000), empty_png(10000)
MOVING = encoded(
    shape("ellipse", "red"), "GIF", save_all=True, append_images=[shape("rectangle", "blue")]
)


class Pictures(http.server.BaseHTTPRequestHandler):
    """Has a red circle at each path, but for those of redirects, `/to?URL`, and for `/none`."""

    def do_GET(self) -> None:
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to?"))
            self.end_headers()
        elif self.path == "/none":
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(RED)))
            self.end_headers()
            self.wfile.write(RED)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


class Sources(NamedTuple):
    """Where pictures may be fetched from."""

    web: str
    """The address of a server with `Pictures`."""
    silent: str
    """A URL of a server that never answers."""
    folder: Path
    """Holds `red.png`, and `link.png` that leads out of it."""
    outside: Path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sources]:
    folder = tmp_path_factory.mktemp("pictures")
    outside = tmp_path_factory.mktemp("other") / "red.png"
    for path in (folder / "red.png", outside):
        path.write_bytes(RED)
    (folder / "link.png").symlink_to(outside)
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as web,
        socket.create_server(("127.0.0.1", 0), backlog=128) as silent,
    ):
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        port = silent.getsockname()[1]
        address = f"http://127.0.0.1:{web.server_port}"
        yield Sources(address, f"http://127.0.0.1:{port}/", folder, outside)
        web.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def seeing() -> Iterator[str]:
    """The address of a server that takes two pictures at most, and fetches as it does unasked."""
    with live_server(*FLAGS, "--limit-mm-per-prompt", '{"image": 2}') as address:
        yield address


@pytest.fixture(scope="module")
def fetching(sources: Sources) -> Iterator[str]:
    """The address of a server that fetches from `sources`, within three seconds."""
    allowed = [
        *("--allow-private-media-addresses", "--allowed-media-domains", "127.0.0.1"),
        *("--allowed-local-media-path", str(sources.folder)),
    ]
    timeouts = {"QUIRE_IMAGE_FETCH_TIMEOUT": "3", "VLLM_IMAGE_FETCH_TIMEOUT": "4"}
    with live_server(*FLAGS, *allowed, environment=timeouts) as address:
        yield address


@contextlib.contextmanager
def client_of(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="EMPTY", max_retries=0) as client:
        yield client


def body_of(content: Any, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": "seeing", "messages": messages, "temperature": 0, "max_tokens": 24, **more}


def ask(address: str, content: Any, **more: Any) -> Any:
    """The answer to one message."""
    with client_of(address) as client:
        return client.chat.completions.create(**body_of(content, **more))


def said(address: str, content: Any, **more: Any) -> str:
    """The text of an answer; the model begins its own with a space."""
    return ask(address, content, **more).choices[0].message.content.strip()


def error_of(address: str, content: Any, status: int, path: str = CHAT, **more: Any) -> Any:
    """The error of a request that fails so, whose shape is OpenAI's."""
    response = httpx.post(f"{address}{path}", json=body_of(content, **more), timeout=60)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    kinds = {400: "BadRequestError", 422: "UnprocessableEntityError"}
    assert (error["type"], error["code"]) == (kinds[status], status)
    return error


@pytest.mark.parametrize("content", [[ASK, image(RED_URL)], [image(RED_URL), ASK]])
def test_a_picture(seeing: str, content: Any) -> None:
    (choice,) = ask(seeing, content).choices
    assert choice.message.content == f" {RED_SEEN}"
    assert choice.finish_reason == "stop"


def test_a_streamed_answer_is_the_same(seeing: str) -> None:
    whole = ask(seeing, [image(BLUE_URL), ASK])
    told: Any = {"include_usage": True}
    with client_of(seeing) as client:
        body = body_of([image(BLUE_URL), ASK], stream=True, stream_options=told)
        chunks = list(client.chat.completions.create(**body))
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == whole.choices[0].message.content == f" {BLUE_SEEN}"
    assert len([text for text in texts if text]) > 1
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


@pytest.mark.parametrize(("which", "seen"), [("first", RED_SEEN), ("second", BLUE_SEEN)])
def test_two_pictures(seeing: str, which: str, seen: str) -> None:
    red, blue, question = image(RED_URL), image(BLUE_URL), which_is(which)
    assert said(seeing, [red, blue, question]) == seen
    assert said(seeing, [red, question, blue]) == seen


def test_pictures_of_several_messages(seeing: str) -> None:
    messages = [
        {"role": "user", "content": [image(RED_URL), ASK]},
        {"role": "assistant", "content": RED_SEEN},
        {"role": "user", "content": [image(BLUE_URL), which_is("second")]},
    ]
    assert said(seeing, "", messages=messages) == BLUE_SEEN
    messages[2] = {"role": "user", "content": [which_is("first"), image(BLUE_URL)]}
    assert said(seeing, "", messages=messages) == RED_SEEN


def test_text_alone(seeing: str) -> None:
    assert said(seeing, GREET) == GREETED
    assert said(seeing, [{"type": "text", "text": GREET}]) == GREETED


@pytest.mark.parametrize(
    "part",
    [
        image(RED_URL, detail="low"),
        image(RED_URL, detail="high"),
        {"type": "image_url", "image_url": RED_URL},
        {"type": "input_image", "image_url": RED_URL},
        {"type": "input_image", "image_url": RED_URL, "detail": "auto"},
        {"image_url": {"url": RED_URL}},
        image(data_url(RED, "image/jpeg")),
        image(data_url(MOVING, "image/gif")),
    ],
    ids=["low", "high", "bare", "input", "input detail", "no type", "wrong type", "moving"],
)
def test_forms_of_a_part(seeing: str, part: Any) -> None:
    assert said(seeing, [part, ASK]) == RED_SEEN


def test_usage_counts_what_stands_for_pictures(seeing: str) -> None:
    green, purple = (image(data_url(encoded(shape("ellipse", c)))) for c in ("green", "purple"))
    first, again = (ask(seeing, [green, ASK]).usage for _ in range(2))
    assert first.total_tokens == first.prompt_tokens + first.completion_tokens
    two = ask(seeing, [green, purple, ASK]).usage
    assert two.prompt_tokens == first.prompt_tokens + TOKENS + 1  # and a line break
    other = ask(seeing, [purple, ASK]).usage
    cached = [usage.prompt_tokens_details.cached_tokens for usage in (first, again, two, other)]
    assert cached[0] == cached[3] == 0  # pages are of their pictures
    assert first.prompt_tokens > cached[1] == cached[2] > 0


def test_other_answers(seeing: str) -> None:
    content = [image(RED_URL), ASK]
    many = ask(seeing, content, n=2, temperature=0.01, logprobs=True)
    assert [choice.message.content.strip() for choice in many.choices] == [RED_SEEN] * 2
    assert len(many.choices[0].logprobs.content) > 1
    assert said(seeing, content, extra_body={"use_beam_search": True, "n": 2}) == RED_SEEN
    forced = {"structured_outputs": {"choice": ["blue", "red"]}}
    assert said(seeing, content, extra_body=forced) == "red"


def test_tokens_are_counted(seeing: str) -> None:
    body: dict[str, Any] = {"messages": body_of([image(RED_URL), ASK])["messages"]}
    answer = httpx.post(f"{seeing}/tokenize", json=body).json()
    assert answer["count"] == ask(seeing, [image(RED_URL), ASK]).usage.prompt_tokens
    assert answer["tokens"].count(PLACEHOLDER) == TOKENS
    response = httpx.post(f"{seeing}/tokenize", json={**body, "mm_processor_kwargs": {"x": 1}})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "mm_processor_kwargs"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (data_url(RED[:100]), "truncated"),
        (data_url(b"Some text."), "10 bytes that begin with b'Some tex' are no picture"),
        (data_url(HUGE), "at most 67108864 are allowed"),
        (data_url(LARGE), "has 10000x10000 pixels, and at most 67108864 are allowed"),
        ("data:image/png;base64,@@@@", "is malformed"),
        ("data:image/png;base64,AAAAA", "is malformed"),
        ("data:image/png,AAAA", "is no base64 data: URL"),
        ("data:image/png;base64,", "0 bytes"),
        ("ftp://example.com/red.png", "is none that is known"),
        ("red.png", "is none that is known"),
        ("http://", "it has no host"),
    ],
    ids=[
        *("truncated", "text", "huge", "large"),
        *("base64", "pad", "url", "empty", "ftp", "path", "host"),
    ],
)
def test_broken_pictures(seeing: str, url: str, reason: str, stream: bool) -> None:
    error = error_of(seeing, [image(url), ASK], 422, stream=stream)
    assert reason in error["message"]
    assert error["param"] == "messages"
    assert said(seeing, [image(RED_URL), ASK]) == RED_SEEN


def test_the_client_raises_what_is_told(seeing: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="truncated") as raised:
        ask(seeing, [image(data_url(RED[:100])), ASK])
    assert raised.value.param == "messages"


@pytest.mark.parametrize("stream", [False, True])
def test_too_many_pictures(seeing: str, stream: bool) -> None:
    error = error_of(seeing, [*[image(RED_URL)] * 3, ASK], 400, stream=stream)
    assert "3 pictures, and limit_mm_per_prompt allows 2" in error["message"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url"},
        {"type": "image_url", "image_url": {}},
        {"type": "image_url", "image_url": {"detail": "low"}},
        {"type": "input_image", "file_id": "file-1"},
        *map(image, ("", None, 7, ["x"])),
    ],
)
def test_a_part_without_a_url(seeing: str, part: Any) -> None:
    error = error_of(seeing, [ASK, part], 400)
    assert error["param"] == "messages[0].content[1]"
    assert "must have a URL" in error["message"]


@pytest.mark.parametrize("kind", ["image_pil", "image", "input_audio", 3])
def test_other_parts(seeing: str, kind: object) -> None:
    error = error_of(seeing, [ASK, {"type": kind, "image_url": RED_URL}], 400)
    assert "takes text or image_url" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["<image>", "Look: <image><image>", "<image>" * TOKENS])
def test_a_placeholder_that_a_user_writes(seeing: str, text: str, stream: bool) -> None:
    written = {"type": "text", "text": text}
    for parts in ([written], [image(RED_URL), written]):
        error = error_of(seeing, parts, 400, stream=stream)
        assert "image placeholders" in error["message"]
    completion = {"prompt": text, "stream": stream}
    response = httpx.post(f"{seeing}/v1/completions", json=completion)
    assert response.status_code == 400, response.text


def test_settings_of_the_processor(seeing: str) -> None:
    content = [image(RED_URL), ASK]
    assert said(seeing, content, extra_body={"mm_processor_kwargs": {}}) == RED_SEEN
    error = error_of(seeing, content, 400, mm_processor_kwargs={"max_pixels": 9})
    assert error["param"] == "mm_processor_kwargs"
    assert "has 'max_pixels'" in error["message"]
    error_of(seeing, content, 400, mm_processor_kwargs=7)


@pytest.mark.parametrize("most", [10, 40, 89])
def test_a_picture_is_not_cut(seeing: str, most: int) -> None:
    content = [image(RED_URL), ASK]
    assert said(seeing, content, extra_body={"truncate_prompt_tokens": 96}) == RED_SEEN
    error = error_of(seeing, content, 400, truncate_prompt_tokens=most)
    assert error["param"] == "truncate_prompt_tokens"


def test_a_model_of_text() -> None:
    for parts in ([image(RED_URL), ASK], [{"type": "input_image", "image_url": RED_URL}]):
        body = {"messages": [{"role": "user", "content": parts}]}
        for path in (CHAT, "/tokenize"):
            error = refusal(path, body)
            assert error["param"] == "messages[0].content[0]"
            assert "takes text: a part must be" in error["message"]
    body = {"messages": [{"role": "user", "content": GREET}]}
    error = refusal(CHAT, {**body, "mm_processor_kwargs": {"max_pixels": 9}})
    assert error["param"] == "mm_processor_kwargs"
    assert "takes text" in error["message"]


def test_private_addresses_are_refused(seeing: str, sources: Sources) -> None:
    for url in (f"{sources.web}/red.png", sources.web.replace("127.0.0.1", "localhost")):
        error = error_of(seeing, [image(url), ASK], 422)
        assert "has no public address" in error["message"]


def test_what_allows_private_addresses_is_told(seeing: str, sources: Sources) -> None:
    error = error_of(seeing, [image(sources.web), ASK], 422)
    assert "allow_private_media_addresses" in error["message"]


def test_local_files_are_refused(seeing: str, sources: Sources) -> None:
    for path in (sources.folder / "red.png", sources.folder / "none.png"):
        error = error_of(seeing, [image(path.as_uri()), ASK], 422)
        assert "the server allows none" in error["message"]
        assert "allowed_local_media_path" in error["message"]


def test_pictures_are_fetched(fetching: str, sources: Sources) -> None:
    for url in (f"{sources.web}/red.png", f"{sources.web}/to?/red.png"):
        assert said(fetching, [image(url), ASK]) == RED_SEEN
    assert said(fetching, [image((sources.folder / "red.png").as_uri()), ASK]) == RED_SEEN


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("{web}/none", "answers with status 404"),
        ("{web}/to?http://localhost/red.png", "from 'localhost' are not allowed"),
        ("{web}/to?{file}", "its scheme is 'file'"),
        ("{web}/to?{web}/to?{web}/to?{web}/to?{web}", "at most 3 redirects"),
        ("http://example.com/red.png", "from 'example.com' are not allowed"),
        ("http://127.1/red.png", "from '127.1' are not allowed"),
        ("http://user@127.0.0.1/red.png", "it holds a user name"),
        ("{folder}/link.png", "is not under an allowed folder"),
        ("{folder}/../other/red.png", "is not under an allowed folder"),
        ("{outside}", "is not under an allowed folder"),
        ("{folder}/none.png", "cannot be read"),
        ("{folder}", "cannot be read"),
        ("{silent}", "did not send the medium within 3.0 seconds"),
    ],
)
def test_what_is_not_fetched(fetching: str, sources: Sources, url: str, reason: str) -> None:
    known = {name: path.as_uri() for name, path in sources._asdict().items() if name[0] in "fo"}
    file = f"{known['folder']}/red.png"
    url = url.format(web=sources.web, silent=sources.silent, file=file, **known)
    error = error_of(fetching, [image(url), ASK], 422, stream=True)
    assert reason in error["message"]


def test_many_at_once(fetching: str, sources: Sources) -> None:
    seen = {
        RED_SEEN: [image(RED_URL), ASK],
        BLUE_SEEN: [image(BLUE_URL), ASK],
        GREETED: GREET,
        "": [image(f"{sources.web}/red.png"), ASK],
    }
    fails = [image(sources.silent), ASK], [image(data_url(RED[:100])), ASK]

    async def main() -> None:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=fetching, timeout=60, limits=limits) as client:

            async def one(content: Any) -> httpx.Response:
                return await client.post(CHAT, json=body_of(content))

            right = [(text or RED_SEEN, content) for text, content in seen.items()] * 5
            answers = asyncio.gather(*(one(content) for _, content in right))
            refused = asyncio.gather(*(one(content) for content in fails * 2))
            while not answers.done():
                assert (await client.get("/health")).status_code == 200
            texts = [one.json()["choices"][0]["message"]["content"] for one in await answers]
            assert [text.strip() for text in texts] == [text for text, _ in right]
            assert [one.status_code for one in await refused] == [422] * 4

    asyncio.run(main())


class Slow(Pictures):
    """Sends a picture when it is told to."""

    asked = threading.Event()
    told = threading.Event()

    def do_GET(self) -> None:
        self.asked.set()
        assert self.told.wait(60)
        super().do_GET()


@pytest.mark.parametrize("stream", [False, True])
def test_a_hang_up_while_pictures_are_fetched_leaves_nothing(stream: bool) -> None:
    Slow.asked.clear()
    Slow.told.clear()
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as web,
        contextlib.closing(
            AsyncEngine(
                str(MODEL),
                enforce_eager=True,
                use_tqdm_on_load=False,
                allow_private_media_addresses=True,
            )
        ) as engine,
    ):
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        content = [image(f"http://127.0.0.1:{web.server_port}"), ASK]
        asyncio.run(asyncio.wait_for(hang_up(engine, content, stream), 120))
        web.shutdown()
        thread.join()


async def hang_up(engine: AsyncEngine, content: Any, stream: bool) -> None:
    service = Service(engine, ServerOptions(served_model_name=["seeing"]), None)
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    body = body_of(content, stream=stream, ignore_eos=True, max_tokens=400)
    request = ChatCompletionRequest.model_validate_json(json.dumps(body))

    async def answer() -> None:
        http_request = Request(scope, receive)
        response = await create_chat_completion(service, request, http_request)
        await response(scope, receive, send)

    task = asyncio.create_task(answer())
    await asyncio.to_thread(Slow.asked.wait, 60)
    gone.set()
    Slow.told.set()
    with pytest.raises(ClientGoneError):
        await task
    assert sent == []
    while (stats := engine.stats()).num_running or stats.num_waiting:
        await asyncio.sleep(0.01)
    assert service.num_waiting == 0
    assert stats.generation_tokens < 400
