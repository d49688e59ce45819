"""Whatever fits the server's own description, or nearly does, is answered without a fault."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from .conftest import AdapterServer

pytestmark = pytest.mark.slow

EXAMPLES = 60
SMALL = {"n": 2, "max_tokens": 4, "max_completion_tokens": 4, "best_of": 2}
"""Fields that only make answers long, and what they are cut to."""
OPERATIONS = {
    "GET /health",
    "GET /metrics",
    "GET /ping",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "GET /version",
    "POST /detokenize",
    "POST /tokenize",
    "POST /v1/chat/completions",
    "POST /v1/completions",
}
OF_ADAPTERS = {"POST /v1/load_lora_adapter", "POST /v1/unload_lora_adapter"}


@pytest.fixture(scope="module")
def operations(server: str) -> dict[str, Any]:
    """What the server describes, by method and path."""
    return described(server)


@pytest.fixture(scope="module")
def with_adapters(adapter_server: AdapterServer) -> dict[str, Any]:
    """What a server describes whose clients may load adapters."""
    return described(adapter_server.address)


def described(address: str) -> dict[str, Any]:
    schema: Any = schemathesis.openapi.from_url(f"{address}/openapi.json")
    results = schema.get_all_operations()
    found = [result.ok() for result in results]
    return {f"{one.method.upper()} {one.path}": one for one in found}


def test_every_operation_is_tried(
    operations: dict[str, Any], with_adapters: dict[str, Any]
) -> None:
    assert operations.keys() == OPERATIONS
    assert with_adapters.keys() == OPERATIONS | OF_ADAPTERS


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_nothing_is_a_fault_of_the_server(
    operations: dict[str, Any], name: str, mode: GenerationMode
) -> None:
    operation = operations[name]
    if mode is GenerationMode.NEGATIVE and not operation.body:
        pytest.skip("it takes nothing that could be wrong")
    try_out(operation, mode)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
@pytest.mark.parametrize("name", sorted(OF_ADAPTERS))
def test_no_adapter_is_a_fault_of_the_server(
    with_adapters: dict[str, Any], name: str, mode: GenerationMode
) -> None:
    try_out(with_adapters[name], mode)


def try_out(operation: Any, mode: GenerationMode) -> None:
    """Sends what fits the description, or nearly does."""

    @seed(0)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        case.body = shortened(case.body)
        response = case.call(timeout=30)
        case.validate_response(response, checks=[not_a_server_error])
        if response.status_code >= 400:
            assert response.json()["error"].keys() == {"message", "type", "param", "code"}

    check()


def shortened(body: Any) -> Any:
    """The body, but numbers that ask for much ask for little."""
    if not isinstance(body, dict):
        return body
    fields: dict[str, Any] = {"max_tokens": 4, **body} if "messages" in body else body
    return {name: cut(name, value) for name, value in fields.items()}


def cut(name: str, value: Any) -> Any:
    return min(value, SMALL[name]) if name in SMALL and type(value) is int else value
