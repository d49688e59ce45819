"""Adapters: what the server knows of them, over a stand-in for the engine, and what they answer."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from tests.lora_folders import lora_folder
from tests.test_seeds import DEMO

from quire import (
    AdapterError,
    BeamSearchParams,
    Engine,
    LoRARequest,
    OptionError,
    SamplingParams,
)
from quire.entrypoints.cli import main
from quire.entrypoints.openai import opening, server
from quire.entrypoints.openai.app import create_app
from quire.entrypoints.openai.errors import ApiError
from quire.entrypoints.openai.lora_modules import LoRAModule
from quire.entrypoints.openai.options import ADAPTER_VARIABLES, ServerOptions
from quire.entrypoints.openai.service import Service

from .conftest import AdapterServer, StandIn, make_service
from .demo_api import ASK_PARIS

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
STORY = "Once upon a time"
JSON = {"Content-Type": "application/json"}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
LOADED = "Success: LoRA adapter 'a' added successfully."


def error(response: Any, status: int = 400) -> dict[str, Any]:
    """The error of an answer, which must be all of it."""
    assert response.status_code == status, response.text
    (told,) = response.json().values()
    assert told.keys() == {"message", "type", "param", "code"}
    return told


@pytest.fixture
def engine() -> StandIn:
    """That of the other tests, but takes adapters."""
    return StandIn(enable_lora=True)


@pytest.fixture(params=ADAPTER_VARIABLES)
def allowed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients may load adapters, by either variable."""
    monkeypatch.setenv(request.param, "True")


@pytest.fixture
def either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients may load adapters."""
    monkeypatch.setenv(ADAPTER_VARIABLES[0], "1")


def client_of(service: Service) -> TestClient:
    return TestClient(create_app(service), raise_server_exceptions=False)


def load(client: Any, name: str = "a", path: str = "/a", **more: Any) -> Any:
    return client.post(LOAD, json={"lora_name": name, "lora_path": path, **more})


def unload(client: Any, name: str = "a", **more: Any) -> Any:
    return client.post(UNLOAD, json={"lora_name": name, **more})


@pytest.mark.usefixtures("allowed")
def test_adapters_come_and_go(engine: StandIn) -> None:
    client = client_of(make_service(engine, "m"))
    response = load(client)
    assert (response.status_code, response.text) == (200, LOADED)
    assert response.headers["content-type"].startswith("text/plain")
    assert engine.adapters == {1: LoRARequest("a", 1, "/a")}
    assert load(client, "b", "org/b").status_code == 200
    assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["m", "a", "b"]
    response = unload(client, lora_int_id=1)
    assert (response.status_code, response.text) == (
        200,
        "Success: LoRA adapter 'a' removed successfully.",
    )
    assert engine.adapters == {2: LoRARequest("b", 2, "org/b")}
    told = error(unload(client), 404)
    assert told["message"] == "There is no adapter 'a'. Loaded: b."
    assert (told["type"], told["param"]) == ("NotFoundError", "lora_name")


def test_without_the_variable_there_is_no_such_route(engine: StandIn) -> None:
    client = client_of(make_service(engine))
    for response in (load(client), unload(client), client.get(LOAD)):
        assert "QUIRE_ALLOW_RUNTIME_LORA_UPDATING=1" in error(response, 404)["message"]
    assert not {LOAD, UNLOAD} & client.get("/openapi.json").json()["paths"].keys()
    assert not engine.loads


@pytest.mark.usefixtures("either")
def test_an_engine_without_adapters() -> None:
    client = client_of(make_service(StandIn()))
    for response in (load(client), unload(client)):
        assert error(response)["message"].endswith("Start it with --enable-lora.")
    assert client.get(LOAD).status_code == 405


@pytest.mark.usefixtures("either")
def test_cards(engine: StandIn) -> None:
    service = make_service(engine, "m", served_model_name=["x", "y"])
    asyncio.run(service.adapters.start([LoRAModule("a", "/a"), LoRAModule("b", "/b", "base")]))
    client = client_of(service)
    cards = client.get("/v1/models").json()["data"]
    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        ("x", "m", None),
        ("y", "m", None),
        ("a", "/a", "x"),
        ("b", "/b", "base"),
    ]
    assert cards[2].keys() == cards[0].keys()
    assert cards[2]["permission"][0]["id"] == "modelperm-a"
    assert client.get("/v1/models/b").json() == cards[3]
    told = error(client.get("/v1/models/c"), 404)
    assert told["message"] == "The model `c` does not exist. Served here: x, y, a, b."
    assert load(client, "b", "/new", load_inplace=True).status_code == 200
    card = client.get("/v1/models/b").json()
    assert (card["root"], card["parent"]) == ("/new", "base")


@pytest.mark.usefixtures("either")
def test_one_name_is_loaded_once_but_in_place(engine: StandIn) -> None:
    client = client_of(make_service(engine))
    assert load(client).status_code == 200
    told = error(load(client, path="/b"))
    assert "has been loaded already, from '/a'" in told["message"]
    assert told["param"] == "lora_name"
    assert engine.loads == ["/a"]
    assert load(client, path="/b", load_inplace=True).text == LOADED
    assert engine.adapters == {1: LoRARequest("a", 1, "/b")}
    assert engine.adapters[1].load_inplace
    assert error(load(client, path="/bad", load_inplace=True))["param"] == "lora_path"
    assert client.get("/v1/models/a").json()["root"] == "/b"


@pytest.mark.usefixtures("either")
def test_a_name_keeps_its_id(engine: StandIn) -> None:
    client = client_of(make_service(engine))
    for name in ("a", "b"):
        assert load(client, name).status_code == 200
    assert unload(client).status_code == 200
    assert load(client, path="/c").status_code == 200
    assert engine.adapters[1] == LoRARequest("a", 1, "/c")


@pytest.mark.usefixtures("either")
def test_what_cannot_be_loaded(engine: StandIn) -> None:
    client = client_of(make_service(engine, "m"))
    told = error(load(client, path="/bad"))
    assert told["message"] == "lora_path='/bad' holds no adapter."
    assert (told["type"], told["param"]) == ("BadRequestError", "lora_path")
    assert error(load(client, "m"))["message"].startswith("lora_name='m' is a name of the model.")
    assert error(load(client, " "))["param"] == "lora_name"
    assert error(load(client, path=""))["param"] == "lora_path"
    half = client.post(LOAD, content=b'{"lora_name": "\\ud800", "lora_path": "/a"}', headers=JSON)
    assert error(half)["param"] == "lora_name"
    assert error(load(client, lora_int_id=3))["param"] == "lora_int_id"
    assert error(load(client, rank=3))["param"] == "rank"
    assert error(client.post(LOAD, json={"lora_name": "a"}))["param"] == "lora_path"
    assert error(client.get("/v1/models/a"), 404)
    assert not engine.adapters


@pytest.mark.usefixtures("either")
def test_an_id_that_is_not_the_adapters(engine: StandIn) -> None:
    client = client_of(make_service(engine))
    assert load(client).status_code == 200
    told = error(unload(client, lora_int_id=7))
    assert told["message"].startswith("lora_int_id=7 is not that of 'a', which is 1")
    assert engine.adapters


@pytest.mark.usefixtures("either")
def test_only_what_lies_under_a_root_is_loaded(engine: StandIn, tmp_path: Path) -> None:
    roots = [tmp_path / "one", tmp_path / "two"]
    inside, outside = roots[1] / "a", tmp_path / "outside"
    for folder in (*roots, inside, outside, roots[0] / "odd", tmp_path / "one-more"):
        folder.mkdir()
    (roots[0] / "link").symlink_to(inside)
    (roots[0] / "leak").symlink_to(outside)
    (outside / "file").write_text("secret")
    (roots[0] / "odd" / "adapter_config.json").symlink_to(outside / "file")
    client = client_of(make_service(engine, lora_dir=[str(root) for root in roots]))
    assert load(client, path=str(roots[0] / "link")).status_code == 200
    assert client.get("/v1/models/a").json()["root"] == str(inside)
    for path in ("one/leak", "one/../outside", "one/odd", "one-more", "outside", "no"):
        told = error(load(client, "b", str(tmp_path / path)))
        assert "leads out of" in told["message"]
        assert told["param"] == "lora_path"
    for path in ("org/name", "../one", "~"):
        assert "leads out of" in error(load(client, "b", path))["message"]
    for path in (f"{roots[0]}/no", f"{roots[0]}/\0", f"{roots[0]}/{'x' * 5000}"):
        assert "cannot be read" in error(load(client, "b", path))["message"]
    assert engine.loads == [str(inside)]


async def together(service: Service, path: str, count: int, *, in_place: bool) -> list[str]:
    """What so many loads at once give: ok, or the message."""

    async def one() -> str:
        try:
            await service.adapters.load("a", path, in_place=in_place)
        except ApiError as told:
            return told.message
        return "ok"

    return await asyncio.gather(*(one() for _ in range(count)))


def test_of_loads_at_once_one_succeeds(engine: StandIn) -> None:
    service = make_service(engine)
    told = asyncio.run(together(service, "/a", 5, in_place=False))
    assert sorted(told)[-1] == "ok"
    assert told.count("ok") == 1
    assert engine.loads == ["/a"]
    assert [one.request.lora_path for one in service.adapters] == ["/a"]


def test_loads_in_place_at_once_all_succeed(engine: StandIn) -> None:
    service = make_service(engine)
    assert asyncio.run(together(service, "/a", 4, in_place=True)) == ["ok"] * 4
    assert engine.loads == ["/a"] * 4
    assert engine.adapters.keys() == {1}


def test_loads_at_once_that_fail_leave_nothing(engine: StandIn) -> None:
    service = make_service(engine)
    told = asyncio.run(together(service, "/bad", 3, in_place=False))
    assert told == ["lora_path='/bad' holds no adapter."] * 3
    assert not list(service.adapters)


def test_names_load_and_unload_beside_each_other(engine: StandIn) -> None:
    async def run() -> None:
        names = [f"a{index}" for index in range(6)]
        adapters = service.adapters
        await asyncio.gather(*(adapters.load(one, f"/{one}", in_place=False) for one in names))
        ids = [one.request.lora_int_id for one in adapters]
        assert sorted(ids) == [1, 2, 3, 4, 5, 6]
        await asyncio.gather(*(adapters.unload(one, None) for one in names))

    service = make_service(engine)
    asyncio.run(run())
    assert not list(service.adapters)
    assert not engine.adapters


def test_a_request_whose_adapter_is_replaced_may_try_again(engine: StandIn) -> None:
    """The engine has one path for an id, and may have the new one before a request comes to it."""

    async def ask(message: str) -> None:
        outputs = service.generate("p", SamplingParams(), "id", lora_request=request)
        task = asyncio.ensure_future(anext(outputs))
        await asyncio.sleep(0)
        engine.queues[0].put_nowait(OptionError(message))
        await task

    service = make_service(engine)
    request = LoRARequest("a", 1, "/old")
    with pytest.raises(ApiError, match="has just been replaced") as caught:
        asyncio.run(ask("lora_int_id=1 cannot stand for the adapter 'a'"))
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
    with pytest.raises(OptionError, match="temperature"):
        asyncio.run(ask("temperature=7 is too much"))


def test_what_is_wrong_at_the_start_ends_it(engine: StandIn) -> None:
    service = make_service(engine)
    with pytest.raises(AdapterError, match="/bad"):
        asyncio.run(service.adapters.start([LoRAModule("a", "/bad")]))


@pytest.mark.parametrize(
    ("variable", "flags", "message"),
    [
        ("1", {}, "QUIRE_ALLOW_RUNTIME_LORA_UPDATING has no effect without --enable-lora"),
        ("1", {"enabled": True}, "clients may load adapters from any folder and from the Hub"),
        ("0", {"enabled": True, "lora_dir": ["."]}, "--lora-dir has no effect"),
        ("0", {"enabled": True}, ""),
    ],
)
def test_what_is_told_at_the_start(
    variable: str,
    flags: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(ADAPTER_VARIABLES[0], variable)
    enabled = flags.pop("enabled", False)
    opening.check("m", ServerOptions(**flags), {"enable_lora": enabled})
    assert message in caplog.text
    assert bool(message) == bool(caplog.text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora-modules", "a=/a"], "lora_modules needs --enable-lora"),
        (["--enable-lora", "--lora-modules", "demo=/a"], "as the model is called"),
        (["--enable-lora", "--enforce-eager", "--lora-modules", "a=/no/such"], "/no/such"),
    ],
)
def test_mistakes_end_the_start(
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_set_up_logs", lambda options: None)
    assert main(["serve", "--port", "0", "--no-use-tqdm-on-load", *flags]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def offline() -> Iterator[Engine]:
    """What the answers of the server are to be."""
    options: dict[str, Any] = {"enforce_eager": True, "use_tqdm_on_load": False}
    with Engine(enable_lora=True, dtype="float32", **options) as engine:
        yield engine


@pytest.fixture
def client(adapter_server: AdapterServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=adapter_server.address, timeout=60) as client:
        yield client


def answered(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(path, json={**GREEDY, **body})
    assert response.status_code == 200, response.text
    return response.json()


def completed(client: httpx.Client, model: str, prompt: str = STORY) -> str:
    return answered(client, COMPLETIONS, model=model, prompt=prompt)["choices"][0]["text"]


@pytest.mark.slow
def test_answers_are_those_of_the_engine(
    adapter_server: AdapterServer, client: httpx.Client, offline: Engine
) -> None:
    request = LoRARequest("sql", 1, str(adapter_server.sql))
    params = SamplingParams(**GREEDY)
    [output] = offline.generate(STORY, params, lora_request=request)
    answer = answered(client, COMPLETIONS, model="sql", prompt=STORY)
    assert answer["model"] == "sql"
    assert answer["choices"][0]["text"] == output.outputs[0].text
    assert completed(client, "demo") != output.outputs[0].text
    [output] = offline.chat(ASK_PARIS, params, lora_request=request)
    answer = answered(client, CHAT, model="sql", messages=ASK_PARIS)
    assert answer["model"] == "sql"
    assert answer["choices"][0]["message"]["content"] == output.outputs[0].text
    beams = BeamSearchParams(beam_width=3, max_tokens=8)
    [found] = offline.beam_search(STORY, beams, lora_request=request)
    body = {"model": "sql", "n": 3, "use_beam_search": True}
    answer = answered(client, COMPLETIONS, prompt=STORY, **body)
    assert answer["model"] == "sql"
    assert [one["text"] for one in answer["choices"]] == [one.text for one in found.outputs]
    asked = {"messages": ASK_PARIS, "n": 3, "use_beam_search": True}
    answer = answered(client, CHAT, **asked, model="sql")
    assert (answer["model"], len(answer["choices"])) == ("sql", 3)
    assert answer["choices"] != answered(client, CHAT, **asked, model="demo")["choices"]


@pytest.mark.slow
def test_streams_bear_the_adapters_name(client: httpx.Client) -> None:
    for path, body in ((COMPLETIONS, {"prompt": STORY}), (CHAT, {"messages": ASK_PARIS})):
        whole = answered(client, path, model="sql", **body)["choices"][0]
        lines = client.post(path, json={**GREEDY, **body, "model": "sql", "stream": True}).text
        *events, done = [line.removeprefix("data: ") for line in lines.split("\n\n") if line]
        assert done == "[DONE]"
        chunks = [json.loads(event) for event in events]
        assert {chunk["model"] for chunk in chunks} == {"sql"}
        pieces = [chunk["choices"][0] for chunk in chunks]
        texts = [one.get("text") or one.get("delta", {}).get("content", "") for one in pieces]
        assert "".join(texts) == whole.get("text", whole.get("message", {}).get("content"))


@pytest.mark.slow
def test_the_model_and_adapters_in_one_batch(client: httpx.Client) -> None:
    alone = [completed(client, name) for name in ("demo", "sql")]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda name: completed(client, name), ["demo", "sql"] * 4))
    assert together == alone * 4


@pytest.mark.slow
def test_tokens_of_an_adapter_are_the_models(client: httpx.Client) -> None:
    tokens = [
        client.post("/tokenize", json={"model": model, "prompt": STORY}).json()["tokens"]
        for model in ("demo", "sql")
    ]
    assert tokens[0] == tokens[1]
    body = {"model": "sql", "tokens": tokens[0]}
    assert client.post("/detokenize", json=body).json() == {"prompt": STORY}


@pytest.mark.slow
def test_clients_load_replace_and_unload(
    adapter_server: AdapterServer, client: httpx.Client, offline: Engine
) -> None:
    first = lora_folder(adapter_server.folder / "first", DEMO, 1)
    second = lora_folder(adapter_server.folder / "second", DEMO, 2)
    params = SamplingParams(**GREEDY)
    expected = [
        offline.generate(STORY, params, lora_request=LoRARequest(path.name, number, str(path)))[0]
        .outputs[0]
        .text
        for number, path in enumerate((first, second), 2)
    ]
    assert expected[0] != expected[1]
    unknown = client.post(COMPLETIONS, json={"model": "a", "prompt": STORY})
    assert error(unknown, 404)["message"].endswith("Served here: demo, sql.")
    with ThreadPoolExecutor(4) as threads:
        statuses = list(threads.map(lambda _: load(client, path=str(first)).status_code, range(4)))
    assert sorted(statuses) == [200, 400, 400, 400]
    assert completed(client, "a") == expected[0]
    (first / "adapter_model.safetensors").write_bytes(
        (second / "adapter_model.safetensors").read_bytes()
    )
    assert completed(client, "a") == expected[0]
    assert load(client, path=str(first), load_inplace=True).status_code == 200
    assert completed(client, "a") == expected[1]
    (first / "adapter_model.safetensors").write_bytes(b"broken")
    assert error(load(client, path=str(first), load_inplace=True))["param"] == "lora_path"
    assert completed(client, "a") == expected[1]
    with ThreadPoolExecutor(2) as threads:
        replaced = threads.map(
            lambda path: load(client, path=path, load_inplace=True), [str(second)] * 2
        )
        assert [response.status_code for response in replaced] == [200, 200]
    assert completed(client, "a") == expected[1]
    assert unload(client).status_code == 200
    assert error(client.post(COMPLETIONS, json={"model": "a", "prompt": STORY}), 404)
    assert completed(client, "sql") != expected[1]


@pytest.mark.slow
def test_what_has_begun_ends_with_its_adapter(
    adapter_server: AdapterServer, client: httpx.Client
) -> None:
    folder = str(lora_folder(adapter_server.folder / "leaving", DEMO, 4))
    assert load(client, "leaving", folder).status_code == 200
    body = {"prompt": STORY, "max_tokens": 200, "ignore_eos": True}
    whole = answered(client, COMPLETIONS, model="leaving", **body)["choices"][0]["text"]
    asked = {**GREEDY, **body, "model": "leaving", "stream": True}
    with client.stream("POST", COMPLETIONS, json=asked) as response:
        lines = response.iter_lines()
        first = next(lines)
        assert unload(client, "leaving").status_code == 200
        events = [first, *(line for line in lines if line)]
    assert events.pop() == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole


@pytest.mark.slow
def test_bad_adapters_are_told(adapter_server: AdapterServer, client: httpx.Client) -> None:
    empty = adapter_server.folder / "empty"
    empty.mkdir()
    told = error(load(client, "b", str(empty)))
    assert "adapter_config.json" in told["message"]
    wide = lora_folder(adapter_server.folder / "wide", DEMO, 3)
    config = json.loads((wide / "adapter_config.json").read_text())
    (wide / "adapter_config.json").write_text(json.dumps({**config, "r": 64}))
    assert error(load(client, "b", str(wide)))["param"] == "lora_path"
    assert "leads out of" in error(load(client, "b", str(DEMO)))["message"]
    assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["demo", "sql"]
