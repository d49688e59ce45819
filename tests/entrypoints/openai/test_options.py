"""Options of the server, and their flags."""

import argparse
import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quire import OptionError
from quire.entrypoints.cli import main
from quire.entrypoints.openai import options
from quire.entrypoints.openai.lora_modules import LoRAModule
from quire.entrypoints.openai.options import ServerOptions


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in options.KEY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def read(*argv: str) -> tuple[ServerOptions, dict[str, Any]]:
    parser = argparse.ArgumentParser()
    options.add_flags(parser)
    return options.read_flags(parser.parse_args(argv))


def test_every_option_is_a_flag_and_is_explained() -> None:
    parser = argparse.ArgumentParser()
    options.add_flags(parser)
    actions = {action.dest: action for action in parser._actions}
    for field in dataclasses.fields(ServerOptions):
        assert actions[field.name].help, field.name


def test_what_is_not_given_is_the_default() -> None:
    assert read() == (ServerOptions(), {})


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--api-key", "a", "b", "--api-key", "c"], "api_key", ["a", "b", "c"]),
        (["--served-model-name", "a", "b"], "served_model_name", ["a", "b"]),
        (["--allowed-origins", '["http://a", "http://b"]'], "allowed_origins", ["http://a", "http://b"]),
        (["--allowed-origins", "http://a"], "allowed_origins", ["http://a"]),
        (["--max-waiting", "none"], "max_waiting", None),
        (["--shutdown-timeout", "2.5"], "shutdown_timeout", 2.5),
        (["--no-protect-metrics"], "protect_metrics", False),
        (["--chat-template", "{{ messages }}"], "chat_template", "{{ messages }}"),
        (["--max-logprobs", "5"], "max_logprobs", 5),
    ],
)  # fmt: skip
def test_flags_of_the_server(argv: list[str], name: str, value: object) -> None:
    assert getattr(read(*argv)[0], name) == value


def test_flags_of_the_engine() -> None:
    argv = ["--max-model-len", "64", "--seed", "3", "--trust-remote-code", "--block-size", "16"]
    assert read(*argv, "--max-logprobs", "5")[1] == {
        "max_model_len": 64,
        "seed": 3,
        "trust_remote_code": True,
        "block_size": 16,
        "max_logprobs": 5,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": 70000}, "port=70000 is not allowed. Give 0 or more and 65535 or less."),
        ({"max_waiting": 0}, "max_waiting=0 is not allowed. Give 1 or more."),
        ({"shutdown_timeout": float("nan")}, "shutdown_timeout=nan is not allowed"),
        ({"api_key": ["a", ""]}, "api_key='' protects nothing"),
        ({"root_path": "llm"}, "root_path='llm' must begin with /"),
        ({"ssl_keyfile": "k.pem"}, "ssl_keyfile needs ssl_certfile"),
        ({"ssl_certfile": "no.pem"}, "the TLS files 'no.pem'"),
        ({"enable_auto_tool_choice": True}, "needs tool_call_parser"),
        ({"allow_credentials": True, "allowed_origins": ["*"]}, "Name the origins."),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message.replace("(", r"\(")):
        ServerOptions(**given)


@pytest.mark.parametrize("text", ["[", "[1]"])
def test_lists_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="JSON list"):
        read("--allowed-origins", text)


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ServerOptions().keys == ()
    monkeypatch.setenv("VLLM_API_KEY", "theirs")
    assert ServerOptions().keys == ("theirs",)
    monkeypatch.setenv("QUIRE_API_KEY", "ours")
    assert ServerOptions().keys == ("ours",)
    assert ServerOptions(api_key=["given"]).keys == ("given",)


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({}, None),
        ({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0"}, None),
        ({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        ({"QUIRE_ALLOW_RUNTIME_LORA_UPDATING": "1"}, "QUIRE_ALLOW_RUNTIME_LORA_UPDATING"),
    ],
)
def test_the_variable_for_adapters(environment: dict[str, str], variable: str | None) -> None:
    assert options.adapters_variable(environment) == variable


def test_a_variable_that_is_neither_true_nor_false_is_refused() -> None:
    name = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
    with pytest.raises(OptionError, match=f"{name}='yes' is not allowed. Set 1, true, 0 or false"):
        options.adapters_variable({name: "yes"})


def test_adapters_of_all_forms() -> None:
    one = '{"name": "b", "path": "/x=y", "base_model_name": "base"}'
    several = (
        '[{"name": "c", "path": "org/c"}, {"name": "d", "path": "d", "base_model_name": null}]'
    )
    argv = ["--lora-modules", "a=/a,b=c", one, "--lora-modules", several]
    assert read(*argv)[0].adapters == [
        LoRAModule("a", "/a,b=c"),
        LoRAModule("b", "/x=y", "base"),
        LoRAModule("c", "org/c"),
        LoRAModule("d", "d"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sql", "lora_modules='sql' has no text as path. Write name=path, or JSON"),
        ("=/folder", "has no text as name"),
        ('{"name": "a"}', "has no text as path"),
        ('{"name": 1, "path": "p"}', "has no text as name"),
        ('{"name": "a", "path": "p", "rank": 8}', "has rank. Write"),
        ('{"name": "a"', "is not JSON"),
        ("[7]", "holds 7, which is no object"),
        ('[{"name": "a", "path": "p"}, {"name": "a", "path": "q"}]', "names 'a' twice"),
    ],
)
def test_adapters_of_no_form_are_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        ServerOptions(lora_modules=[text])


def test_adapters_that_do_not_go_with_the_rest_are_refused(tmp_path: Path) -> None:
    given = ServerOptions(lora_modules=["a=/a"])
    given.check_adapters(["m"], enabled=True)
    with pytest.raises(OptionError, match="lora_modules needs --enable-lora"):
        given.check_adapters(["m"], enabled=False)
    with pytest.raises(OptionError, match="'a', as the model is called, too"):
        given.check_adapters(["m", "a"], enabled=True)
    with pytest.raises(OptionError, match="lora_dir needs --enable-lora"):
        ServerOptions(lora_dir=[str(tmp_path)]).check_adapters(["m"], enabled=False)
    with pytest.raises(OptionError, match="is no folder"):
        ServerOptions(lora_dir=[str(tmp_path / "no")])


def test_parsers_are_loaded(tmp_path: Path) -> None:
    ServerOptions(tool_call_parser="hermes", reasoning_parser="qwen3").load_parsers()
    for wrong in (ServerOptions(tool_call_parser="herms"), ServerOptions(reasoning_parser="herms")):
        with pytest.raises(OptionError, match="'herms'"):
            wrong.load_parsers()
    (plugin := tmp_path / "plugin.py").write_text("")
    with pytest.raises(OptionError, match="registers no parser"):
        ServerOptions(tool_parser_plugin=str(plugin)).load_parsers()


def test_a_model_behind_several_values_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--api-key", "secret", "some/model"]) == 2
    assert "Put MODEL first" in capsys.readouterr().err


def test_the_command_tells_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--enable-auto-tool-choice"]) == 2
    assert capsys.readouterr().err.startswith("quire: error: enable_auto_tool_choice=True needs")


def test_help_needs_no_server() -> None:
    code = """
import sys
from quire.entrypoints.cli import main
try:
    main()
finally:
    assert not {"jax", "fastapi", "uvicorn", "prometheus_client"} & sys.modules.keys()
"""
    command = [sys.executable, "-W", "error", "-c", code, "serve", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: quire serve [MODEL]" in done.stdout
