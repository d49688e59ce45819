"""Keys, limits of bodies and ids of requests, around the smallest application."""

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from quire.entrypoints.openai.middleware import ApiKeys, BodyLimit, RequestIds, RootPath


async def answer(request: Request) -> PlainTextResponse:
    body = await request.body()
    request_id = request.headers.get("x-request-id", "")
    return PlainTextResponse(f"{len(body)} bytes {request_id}")


def plain() -> ASGIApp:
    routes = [
        Route(path, answer, methods=["GET", "POST"]) for path in ("/health", "/metrics", "/v1/x")
    ]
    return Starlette(routes=routes)


def with_keys(*keys: str, open_routes: frozenset[str] = frozenset({"/health"})) -> TestClient:
    return TestClient(ApiKeys(plain(), keys, open_routes))


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer one two",
        "Basic one",
        "one",
        "Bearer \xe9",
    ],
)
def test_without_a_key_nothing_is_told(header: str | None) -> None:
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    response = with_keys("one", "two").get("/v1/x", headers=headers)
    assert response.status_code == 401
    error = response.json()["error"]
    assert error["code"] == "invalid_api_key"
    assert error.keys() == {"message", "type", "param", "code"}
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["Bearer one", "bearer two", "Bearer  one"])
def test_every_key_opens(header: str) -> None:
    response = with_keys("one", "two").get("/v1/x", headers={"Authorization": header})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200),
        ("/metrics", 401),
        ("/health/", 401),
        ("//health", 401),
        ("/healthx", 401),
        ("/v1/../health", 200),  # the client makes it /health
        ("/nothing", 401),
    ],
)
def test_only_open_routes_are_open(path: str, status: int) -> None:
    assert with_keys("one").get(f"http://testserver{path}").status_code == status


def test_metrics_may_be_open() -> None:
    client = with_keys("one", open_routes=frozenset({"/health", "/metrics"}))
    assert client.get("/metrics").status_code == 200


def test_preflights_need_no_key() -> None:
    assert with_keys("one").options("/v1/x").status_code == 405


@pytest.mark.parametrize("path", ["/health", "/llm/health"])
def test_open_routes_behind_a_proxy(path: str) -> None:
    keys = ApiKeys(plain(), ["one"], frozenset({"/health"}))
    client = TestClient(RootPath(keys, "/llm"))
    assert client.get(path).status_code == 200
    assert client.get("/llmhealth").status_code == 401


def chunks(total: int):  # pyright: ignore
    for start in range(0, total, 10):
        yield b"x" * min(10, total - start)


def test_bodies_up_to_the_limit_are_read() -> None:
    client = TestClient(BodyLimit(plain(), 100))
    assert client.post("/v1/x", content=b"x" * 100).text.startswith("100 bytes")
    assert client.post("/v1/x", content=chunks(100)).text.startswith("100 bytes")


def test_longer_bodies_are_refused() -> None:
    client = TestClient(BodyLimit(plain(), 100))
    declared = client.post("/v1/x", content=b"x" * 101)
    assert declared.status_code == 413
    assert "101 bytes" in declared.json()["error"]["message"]
    assert "100 bytes are allowed" in declared.json()["error"]["message"]
    streamed = client.post("/v1/x", content=chunks(101))
    assert streamed.status_code == 413
    assert "100 bytes are allowed" in streamed.text


@pytest.mark.parametrize("make", [True, False])
def test_ids_of_requests_come_back(make: bool) -> None:
    client = TestClient(RequestIds(plain(), make))
    response = client.get("/v1/x", headers={"X-Request-Id": "abc"})
    assert response.headers["x-request-id"] == "abc"
    assert response.text == "0 bytes abc"


def test_ids_are_made_up_only_where_asked() -> None:
    assert "x-request-id" not in TestClient(RequestIds(plain(), False)).get("/v1/x").headers
    response = TestClient(RequestIds(plain(), True)).get("/v1/x")
    assert response.text == f"0 bytes {response.headers['x-request-id']}"
    assert len(response.headers["x-request-id"]) == 32
