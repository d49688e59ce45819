"""A replica: an engine in an actor of Ray Serve, behind the routes of `quire serve`."""

import contextlib
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve

from ... import EngineClosedError
from ..openai.app import create_app
from ..openai.opening import check, keep_pauses_short, opened
from ..openai.options import ServerOptions
from .gpus import check_gpus


@serve.ingress()
class Replica:
    """Serve calls its methods: all of them on the event loop of the routes."""

    def __init__(
        self, model: str | None, options: ServerOptions, engine_options: Mapping[str, Any]
    ) -> None:
        """Loads the model. Raises QuireError for what cannot be."""
        self._stack = contextlib.ExitStack()
        check(model, options, engine_options)
        check_gpus(engine_options, "the options of the application")
        self._service = self._stack.enter_context(opened(model, options, engine_options))

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes, once the adapters are loaded. Raises AdapterError."""
        await self._service.adapters.start(self._service.options.adapters)
        keep_pauses_short()
        return create_app(self._service, request_ids=False)

    async def check_health(self) -> None:
        """Raises EngineClosedError where the engine takes no requests any more."""
        engine = self._service.engine
        if not engine.is_running:
            # a new one each time: Ray takes the cause off those that it sees
            raise EngineClosedError(str(engine.dead_error or "the engine was closed."))

    def __del__(self) -> None:
        """Serve calls it when the requests of a replica that is to stop have ended."""
        self._stack.close()
