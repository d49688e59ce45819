"""Everything the server can be told, and the flags of `quire serve`."""

import argparse
import dataclasses
import json
import os
import ssl
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from ... import EngineOptions, OptionError
from ..arguments import (
    add_compatible_flags,
    add_engine_options,
    add_options,
    compatible_flags,
    engine_options,
    options,
)
from ..parsers import load_plugin, reasoning_parser, tool_parser
from .lora_modules import LoRAModule, read_modules

LogLevel = Literal["critical", "error", "warning", "info", "debug", "trace"]
MetricsPrefix = Literal["vllm", "quire"]

SERVER_LEFT_OUT = frozenset({"chat_template", "max_logprobs"})
"""Server options that are the engine's too: its flags give both."""
ENGINE_LEFT_OUT = frozenset({"model", "skip_tokenizer_init"})
KEY_VARIABLES = ("QUIRE_API_KEY", "VLLM_API_KEY")
ADAPTER_VARIABLES = ("QUIRE_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")
"""Let clients load adapters, where one is true."""
_SWITCH = {"1": True, "true": True, "": False, "0": False, "false": False}

_SEVERAL = {"action": "extend", "nargs": "+"}


def _several(**flag: Any) -> Any:
    """A list that starts empty; its flag takes several values, and may be given again."""
    return dataclasses.field(default=None, metadata={"flag": _SEVERAL | flag})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How an engine is served. Raises OptionError for values that cannot be."""

    host: str = "127.0.0.1"
    """Address to listen at: 127.0.0.1 for this machine alone, 0.0.0.0 or :: for all others too."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    uds: str | None = None
    """Path of a Unix socket to listen at, in place of host and port."""
    api_key: list[str] | None = _several()
    """Keys, of which clients must send one. Without any, QUIRE_API_KEY or else VLLM_API_KEY of the
    environment is the key; without these all may ask."""
    served_model_name: list[str] | None = _several()
    """Names by which requests may call the model; answers bear the first. None is MODEL itself."""
    lora_modules: list[str] | None = _several()
    """Adapters to serve besides the model, each as name=path or as a JSON object of name, path and
    base_model_name; needs --enable-lora."""
    lora_dir: list[str] | None = _several()
    """Folders under which the adapters lie that clients may load. None: any folder, and any
    repository on the Hub."""
    chat_template: str | None = None
    """Template text or the path of a file; None is the tokenizer's own."""
    response_role: str = "assistant"
    """Role of the answers in a chat."""
    root_path: str = ""
    """Where a proxy has put the server, such as /llm."""
    ssl_keyfile: str | None = None
    """Private key of --ssl-certfile, if that file has it not."""
    ssl_certfile: str | None = None
    """Certificate chain; with it the server speaks HTTPS."""
    ssl_ca_certs: str | None = None
    """Authorities whose certificates clients may show."""
    ssl_cert_reqs: int = 0
    """Whether clients show a certificate: 0 none, 1 if they like, 2 always."""
    allowed_origins: list[str] | None = _several()
    """Origins whose pages a browser lets call the server; * is all. JSON lists are read, too."""
    allowed_methods: list[str] | None = _several()
    """Methods that such pages may use; None is all."""
    allowed_headers: list[str] | None = _several()
    """Headers that such pages may send; None is all."""
    allow_credentials: bool = False
    """Whether such pages may send cookies."""
    uvicorn_log_level: LogLevel = "info"
    """What the server logs of itself."""
    enable_log_requests: bool = False
    """Logs the sampling parameters of every request."""
    disable_access_log: bool = False
    """Logs no line for each request."""
    enable_auto_tool_choice: bool = False
    """Lets the model decide whether it calls a tool; needs --tool-call-parser."""
    tool_call_parser: str | None = None
    """How the model writes calls of tools, such as llama3_json or hermes."""
    tool_parser_plugin: str | None = None
    """Python file that registers parsers; it runs with all rights of the server."""
    reasoning_parser: str | None = None
    """How the model writes its reasoning, such as deepseek_r1 or qwen3."""
    max_waiting: int | None = 4096
    """Sequences, of which a prompt has n, that may wait for room; beyond it the answer is 503.
    None: any number."""
    max_prompts: int = 1024
    """Most prompts of one request."""
    max_n: int = 128
    """Most choices a prompt may ask for, and most beams of a search."""
    max_body_bytes: int = 32 * 2**20
    """Longest body of a request."""
    max_logprobs: int = 20
    """Most log-probabilities a token that a request may ask for; -1 allows all."""
    metrics_prefix: MetricsPrefix = "vllm"
    """What names of metrics begin with: existing dashboards look for vllm."""
    protect_metrics: bool = True
    """Asks for a key at /metrics, as at every route but /health."""
    trust_request_chat_template: bool = False
    """Lets requests bring chat templates, which run in a sandbox, but without limits of time."""
    enable_request_id_headers: bool = False
    """Answers every request with an X-Request-Id, made up where the client sent none."""
    return_tokens_as_token_ids: bool = False
    """Names tokens of log-probabilities `token_id:ID`, so that none is ambiguous."""
    shutdown_timeout: float = 30.0
    """Seconds that running requests have to end, once the server is told to stop."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_tls()
        self._check_adapters()
        if "" in self.keys:
            raise OptionError("api_key='' protects nothing. Give a key that is not empty.")
        if self.root_path and not self.root_path.startswith("/"):
            raise OptionError(f"root_path={self.root_path!r} must begin with /, such as /llm.")
        if self.allow_credentials and "*" in (self.allowed_origins or ()):
            raise OptionError(
                "allow_credentials=True with allowed_origins=['*'] would let every page act as "
                "its visitor. Name the origins."
            )
        if self.enable_auto_tool_choice and self.tool_call_parser is None:
            raise OptionError(
                "enable_auto_tool_choice=True needs tool_call_parser, such as llama3_json."
            )

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys clients may send; empty where none is needed."""
        if self.api_key:
            return tuple(self.api_key)
        found = (os.environ.get(variable) for variable in KEY_VARIABLES)
        return tuple(key for key in found if key)[:1]

    @property
    def adapters(self) -> list[LoRAModule]:
        """What `lora_modules` names."""
        return read_modules(self.lora_modules or ())

    def check_adapters(self, model_names: Collection[str], *, enabled: bool) -> None:
        """Raises OptionError where adapters do not go with the model's names or the engine.

        Args:
            model_names: what the model is called by.
            enabled: whether the engine takes adapters.
        """
        for name in ("lora_modules", "lora_dir"):
            if getattr(self, name) and not enabled:
                raise OptionError(f"{name} needs --enable-lora: the engine takes no adapters else.")
        for module in self.adapters:
            if module.name in model_names:
                raise OptionError(
                    f"lora_modules names an adapter {module.name!r}, as the model is called, too. "
                    "Give it another name, or the model one with --served-model-name."
                )

    def load_parsers(self) -> None:
        """Runs the plugin and checks the names of parsers. Raises OptionError."""
        if self.tool_parser_plugin is not None:
            load_plugin(self.tool_parser_plugin)
        if self.tool_call_parser is not None:
            tool_parser(self.tool_call_parser)
        if self.reasoning_parser is not None:
            reasoning_parser(self.reasoning_parser)

    def _check_numbers(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                above = f" and {high} or less" if high < _ANY else ""
                raise OptionError(f"{name}={value} is not allowed. Give {low} or more{above}.")

    def _check_adapters(self) -> None:
        read_modules(self.lora_modules or ())
        for folder in self.lora_dir or ():
            if not Path(folder).is_dir():
                raise OptionError(f"lora_dir={folder!r} is no folder. Make it, or name another.")

    def _check_tls(self) -> None:
        if self.ssl_certfile is None:
            for name in ("ssl_keyfile", "ssl_ca_certs"):
                if getattr(self, name) is not None:
                    raise OptionError(f"{name} needs ssl_certfile: give the server's certificate.")
            return
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile)
            if self.ssl_ca_certs is not None:
                context.load_verify_locations(self.ssl_ca_certs)
        except (OSError, ssl.SSLError) as error:
            raise OptionError(
                f"the TLS files {self.ssl_certfile!r}, {self.ssl_keyfile!r}, "
                f"{self.ssl_ca_certs!r} cannot be used: {error}. Give PEM files that fit together."
            ) from error


_ANY = float("inf")
_RANGES = {
    "port": (0, 65535),
    "ssl_cert_reqs": (0, 2),
    "max_waiting": (1, _ANY),
    "max_prompts": (1, _ANY),
    "max_n": (1, _ANY),
    "max_body_bytes": (1, _ANY),
    "max_logprobs": (-1, _ANY),
    "shutdown_timeout": (0, _ANY),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every option of the server and of the engine."""
    add_options(parser, "server", ServerOptions, SERVER_LEFT_OUT)
    names = {field.name for field in dataclasses.fields(EngineOptions)}
    add_engine_options(parser, frozenset(names - ENGINE_LEFT_OUT))
    add_compatible_flags(parser)


def read_flags(args: argparse.Namespace) -> tuple[ServerOptions, dict[str, Any]]:
    """The server's options, and those of the engine that were given. Raises OptionError."""
    engine = engine_options(args, ENGINE_LEFT_OUT) | compatible_flags(args)
    server = options(args, ServerOptions, SERVER_LEFT_OUT)
    server |= {name: engine[name] for name in SERVER_LEFT_OUT if name in engine}
    for name in ("allowed_origins", "allowed_methods", "allowed_headers"):
        if name in server:
            server[name] = [item for text in server[name] for item in _listed(name, text)]
    return ServerOptions(**server), engine


def several_given(args: argparse.Namespace) -> list[str]:
    """The flags that took more than one value, so that one may have been meant for MODEL."""
    return [
        "--" + field.name.replace("_", "-")
        for field in dataclasses.fields(ServerOptions)
        if "flag" in field.metadata and len(getattr(args, field.name, None) or ()) > 1
    ]


def adapters_variable(environment: Mapping[str, str]) -> str | None:
    """The variable that lets clients load adapters; None where they may not.

    Raises OptionError for a value that is neither true nor false.
    """
    for variable in ADAPTER_VARIABLES:
        value = environment.get(variable, "")
        if value.strip().lower() not in _SWITCH:
            raise OptionError(f"{variable}={value!r} is not allowed. Set 1, true, 0 or false.")
        if _SWITCH[value.strip().lower()]:
            return variable
    return None


def _listed(name: str, text: str) -> list[str]:
    """One value, or those of a JSON list."""
    if not text.startswith("["):
        return [text]
    try:
        values = json.loads(text)
    except ValueError as error:
        raise OptionError(f"{name}={text!r} is not a JSON list: {error}.") from error
    if not all(isinstance(value, str) for value in values):
        raise OptionError(f"{name}={text!r} must be a JSON list of strings.")
    return values
