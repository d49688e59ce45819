"""Routes, and errors in OpenAI's shape, over a stand-in for the engine."""

from typing import Any

import pytest
from starlette.testclient import TestClient

import quire
from quire.entrypoints.openai.app import create_app

from .conftest import StandIn, make_service

JSON = {"Content-Type": "application/json"}


def app_client(engine: StandIn, model: str | None = None, **options: Any) -> TestClient:
    app = create_app(make_service(engine, model, **options))
    return TestClient(app, raise_server_exceptions=False)


def error(response: Any, status: int) -> dict[str, Any]:
    """The error of an answer, which must be all of it."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return body["error"]


def test_models(engine: StandIn) -> None:
    listed = app_client(engine, "some/model").get("/v1/models").json()
    assert listed["object"] == "list"
    (card,) = listed["data"]
    (permission,) = card.pop("permission")
    assert permission["object"] == "model_permission"
    assert isinstance(card.pop("created"), int)
    assert card == {
        "id": "some/model",
        "object": "model",
        "owned_by": "quire",
        "root": "some/model",
        "parent": None,
        "max_model_len": 64,
    }


def test_models_have_the_names_they_are_served_by(engine: StandIn) -> None:
    client = app_client(engine, "some/model", served_model_name=["a", "b/c"])
    cards = client.get("/v1/models").json()["data"]
    assert [(card["id"], card["root"]) for card in cards] == [
        ("a", "some/model"),
        ("b/c", "some/model"),
    ]
    assert client.get("/v1/models/b/c").json()["id"] == "b/c"
    told = error(client.get("/v1/models/some/model"), 404)
    assert told["message"].startswith("The model `some/model` does not exist.")
    assert (told["type"], told["param"]) == ("NotFoundError", "model")


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_health_is_the_engines(engine: StandIn, path: str) -> None:
    client = app_client(engine)
    response = client.get(path)
    assert (response.status_code, response.content) == (200, b"")
    engine.die()
    assert client.get(path).status_code == 503


def test_version(engine: StandIn) -> None:
    assert app_client(engine).get("/version").json() == {"version": quire.__version__}


def test_metrics(engine: StandIn) -> None:
    response = app_client(engine).get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'vllm:num_requests_running{model_name="demo"} 0.0' in response.text


def test_unknown_routes_and_methods(engine: StandIn) -> None:
    client = app_client(engine)
    told = error(client.get("/v1/nothing"), 404)
    assert "GET /v1/nothing" in told["message"]
    assert error(client.get("/health/"), 404)["type"] == "NotFoundError"
    response = client.delete("/health")
    assert error(response, 405)["type"] == "MethodNotAllowedError"
    assert response.headers["allow"] == "GET"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_bodies_that_are_no_json(engine: StandIn, path: str) -> None:
    client = app_client(engine)
    for body in ('{"prompt": ', "", "[1]", "7", "\xff"):
        assert error(client.post(path, content=body, headers=JSON), 400)["code"] == 400
    told = error(client.post(path, content="[" * 100_000, headers=JSON), 400)
    assert "too many levels" in told["message"]
    told = error(client.post(path, content=b'{"prompt": "a"}'), 400)
    assert told["message"] == "Content-Type is '': send JSON, as `application/json`."
    told = error(client.post(path, data={"prompt": "a"}), 400)
    assert "'application/x-www-form-urlencoded'" in told["message"]


def test_fields_are_named(engine: StandIn) -> None:
    client = app_client(engine)
    assert error(client.post("/v1/completions", json={}), 400)["param"] == "prompt"
    body = {"prompt": "a", "max_tokens": "many"}
    assert error(client.post("/v1/completions", json=body), 400)["param"] == "max_tokens"
    body = {"messages": [], "no_such_field": 1}
    assert error(client.post("/v1/chat/completions", json=body), 400)["message"]
    wrong = {"model": "other", "prompt": "a"}
    assert error(client.post("/v1/completions", json=wrong), 404)["param"] == "model"


@pytest.mark.parametrize("kind", [RuntimeError, quire.CheckpointError])
def test_a_fault_inside_tells_no_details(engine: StandIn, kind: type[Exception]) -> None:
    def broken() -> None:
        raise kind("a secret")

    service = make_service(engine)
    service.metrics.text = broken  # pyright: ignore[reportAttributeAccessIssue]
    client = TestClient(create_app(service), raise_server_exceptions=False)
    response = client.get("/metrics")
    assert error(response, 500)["type"] == "InternalServerError"
    assert "secret" not in response.text


def test_a_key_opens_all_but_health(engine: StandIn) -> None:
    client = app_client(engine, api_key=["k"])
    assert client.get("/health").status_code == 200
    paths = client.app.openapi()["paths"]  # pyright: ignore
    for path in [*paths, "/openapi.json", "/docs", "/redoc", "/nothing", "/ping"]:
        for method in ("GET", "POST"):
            if path != "/health":
                assert error(client.request(method, path), 401)["code"] == "invalid_api_key"
    client.headers["Authorization"] = "Bearer k"
    assert client.get("/v1/models").status_code == 200
    assert client.get("/metrics").status_code == 200


def test_metrics_may_be_open_beside_a_key(engine: StandIn) -> None:
    client = app_client(engine, api_key=["k"], protect_metrics=False)
    assert client.get("/metrics").status_code == 200
    assert client.get("/version").status_code == 401


def test_pages_of_allowed_origins_may_call(engine: StandIn) -> None:
    asked = {"Origin": "http://a", "Access-Control-Request-Method": "POST"}
    client = app_client(engine, allowed_origins=["http://a"], api_key=["k"])
    preflight = client.options("/v1/models", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "http://a"
    refused = client.get("/v1/models", headers={"Origin": "http://a"})
    assert refused.status_code == 401  # which the page can read
    assert refused.headers["access-control-allow-origin"] == "http://a"
    assert client.options("/v1/models", headers={**asked, "Origin": "http://b"}).status_code == 400


def test_no_page_may_call_unless_allowed(engine: StandIn) -> None:
    response = app_client(engine).get("/v1/models", headers={"Origin": "http://a"})
    assert "access-control-allow-origin" not in response.headers


def test_long_bodies_are_refused(engine: StandIn) -> None:
    client = app_client(engine, max_body_bytes=50)
    body = b'{"prompt": "' + b"x" * 100 + b'"}'
    assert error(client.post("/v1/completions", content=body, headers=JSON), 413)
    pieces = (body[start : start + 10] for start in range(0, len(body), 10))
    told = error(client.post("/v1/completions", content=pieces, headers=JSON), 413)
    assert "50 bytes" in told["message"]


def test_behind_a_proxy(engine: StandIn) -> None:
    client = app_client(engine, root_path="/llm", api_key=["k"])
    for path in ("/health", "/llm/health"):
        assert client.get(path).status_code == 200
    for path in ("/v1/models", "/llm/v1/models"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer k"}).status_code == 200


def test_the_description_has_this_servers_errors(engine: StandIn) -> None:
    schema = app_client(engine).get("/openapi.json").json()
    routes = {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/models",
        "/tokenize",
        "/detokenize",
        "/health",
        "/version",
        "/metrics",
    }
    assert routes <= schema["paths"].keys()
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert {"200", "401"} <= operation["responses"].keys(), path
            assert "422" not in operation["responses"], path
    failed = schema["paths"]["/v1/completions"]["post"]["responses"]["400"]
    reference = failed["content"]["application/json"]["schema"]["$ref"]
    assert schema["components"]["schemas"][reference.rpartition("/")[2]]["required"] == ["error"]
