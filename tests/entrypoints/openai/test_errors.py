import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from quire import ChatTemplateError, EngineClosedError, MemoryBudgetError, OptionError, PromptError
from quire.entrypoints.openai.errors import ApiError, as_api_error, error_body


def test_an_error_has_openais_shape() -> None:
    error = ApiError(404, "There is none.", param="model", headers={"a": "b"})
    assert error_body(error) == {
        "error": {
            "message": "There is none.",
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }
    }
    assert (str(error), error.headers) == ("There is none.", {"a": "b"})
    assert as_api_error(error) is error


@pytest.mark.parametrize("kind", [PromptError, OptionError, ChatTemplateError, MemoryBudgetError])
def test_mistakes_of_users_are_told(kind: type[Exception]) -> None:
    error = as_api_error(kind("n=0 is not allowed. Pass 1."))
    assert (error.status, error.message) == (400, "n=0 is not allowed. Pass 1.")
    assert error.param == "n"


def test_a_missing_template_names_the_flag() -> None:
    error = as_api_error(ChatTemplateError("This tokenizer has no chat template: ..."))
    assert "--chat-template" in error.message


def test_errors_inside_are_not_told() -> None:
    error = as_api_error(ValueError("/secret/path"))
    assert (error.status, error.type) == (500, "InternalServerError")
    assert "secret" not in error.message
    assert as_api_error(EngineClosedError("ValueError('secret')")).status == 503
    assert "secret" not in as_api_error(EngineClosedError("ValueError('secret')")).message


def test_http_errors_keep_their_status() -> None:
    error = as_api_error(HTTPException(405, headers={"Allow": "POST"}))
    assert (error.status, error.headers) == (405, {"Allow": "POST"})


def test_validation_names_the_field() -> None:
    problem = {"type": "t", "loc": ("body", "tools", 0, "function", "name"), "msg": "Wrong"}
    error = as_api_error(RequestValidationError([problem | {"input": 5}]))
    assert (error.status, error.param) == (400, "tools[0].function.name")
    assert error.message == "tools[0].function.name=5 is not valid: Wrong."


def test_halves_of_characters_can_be_sent() -> None:
    assert as_api_error(PromptError("\ud800")).message == "?"
