"""A server's life: a socket, an engine, requests until a signal comes, and a clean end."""

import asyncio
import contextlib
import copy
import errno
import gc
import logging
import logging.config
import os
import signal
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from ... import AsyncEngine, OptionError
from .app import create_app
from .opening import check, keep_pauses_short, opened
from .options import ServerOptions
from .service import Service

logger = logging.getLogger(__name__)

BACKLOG = 2048


def run(model: str | None, options: ServerOptions, engine_options: Mapping[str, Any]) -> int:
    """Serves `model` until SIGTERM or SIGINT; the process's exit status.

    A signal ends it once running requests have, or after `shutdown_timeout` seconds; a second one
    ends it at once. Status 0 follows a signal, 1 an engine that died. Raises QuireError for options
    that cannot be.
    """
    _set_up_logs(options)
    check(model, options, engine_options)
    # bound first: a port that is taken is told before the model loads, and nobody else takes it
    with _listening(options) as sock, opened(model, options, engine_options) as service:
        asyncio.run(service.adapters.start(options.adapters))
        keep_pauses_short()
        return _serve(service, sock)


def _serve(service: Service, sock: socket.socket) -> int:
    options = service.options
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        log_level=options.uvicorn_log_level,
        access_log=not options.disable_access_log,
        backlog=BACKLOG,
        lifespan="off",
        server_header=False,
        ssl_keyfile=options.ssl_keyfile,
        ssl_certfile=options.ssl_certfile,
        ssl_ca_certs=options.ssl_ca_certs,
        ssl_cert_reqs=options.ssl_cert_reqs,
        timeout_graceful_shutdown=options.shutdown_timeout,  # pyright: ignore[reportArgumentType]  any number of seconds will do
    )
    logger.info("serving %s at %s", service.model_names[0], _address(options, sock))
    Server(config, service.engine).run([sock])
    if service.engine.errored:
        logger.error("the engine died: %s", service.engine.dead_error)
        return 1
    return 0


class Server(uvicorn.Server):
    """Uvicorn, ended by two signals or by the death of the engine."""

    def __init__(self, config: uvicorn.Config, engine: AsyncEngine) -> None:
        super().__init__(config)
        self._engine = engine
        self._programs_compiled = 0

    async def on_tick(self, counter: int) -> bool:
        """Called every tenth of a second: ends with the engine, after what is being answered."""
        if not self._engine.is_running:
            await super().on_tick(counter)
            return True
        compiled = self._engine.stats().programs_compiled
        if compiled != self._programs_compiled:
            gc.freeze()  # the many objects of a program stay as well
            self._programs_compiled = compiled
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends with what runs at the first signal, at once at the second.

        Not uvicorn's, which raises the signal again and so never exits with 0.
        """
        if self.should_exit:
            os._exit(128 + sig)
        logger.info("%s: running requests may end, no others begin", signal.Signals(sig).name)
        self.should_exit = True


@contextlib.contextmanager
def _listening(options: ServerOptions) -> Iterator[socket.socket]:
    """A socket bound as the options say; its file, if it has one, is removed at the end."""
    sock = _unix_socket(options.uds) if options.uds else _tcp_socket(options.host, options.port)
    try:
        yield sock
    finally:
        sock.close()
        if options.uds:
            Path(options.uds).unlink(missing_ok=True)


def _tcp_socket(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return _bound(family, address)
    except OSError as error:
        remedy = " Choose another with --port." if error.errno == errno.EADDRINUSE else ""
        raise OptionError(
            f"host={host!r} port={port} cannot be listened at: {error}.{remedy}"
        ) from error


def _unix_socket(path: str) -> socket.socket:
    try:
        if _is_left_over(path):
            Path(path).unlink()
        return _bound(socket.AF_UNIX, path)
    except OSError as error:
        raise OptionError(f"uds={path!r} cannot be listened at: {error}.") from error


def _bound(family: int, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            # a port that is free but for connections on their way out is free
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_left_over(path: str) -> bool:
    """Whether a socket is there at which nobody listens any more."""
    if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        return trial.connect_ex(path) == errno.ECONNREFUSED


def _address(options: ServerOptions, sock: socket.socket) -> str:
    if options.uds:
        return f"unix:{options.uds}"
    host, port = sock.getsockname()[:2]
    scheme = "https" if options.ssl_certfile else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _set_up_logs(options: ServerOptions) -> None:
    """Quire's own messages go where uvicorn's do, which is stderr."""
    config = copy.deepcopy(LOGGING_CONFIG)
    level = options.uvicorn_log_level.upper().replace("TRACE", "DEBUG")
    config["loggers"]["quire"] = {"handlers": ["default"], "level": level, "propagate": False}
    logging.config.dictConfig(config)
