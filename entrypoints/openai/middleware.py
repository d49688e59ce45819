"""What stands before all routes, as plain ASGI: keys, the size of bodies, ids of requests."""

import hashlib
import hmac
import json
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, error_body

OPEN_ROUTES = frozenset({"/health"})
METRICS_ROUTE = "/metrics"
REQUEST_ID = "X-Request-Id"


class ApiKeys:
    """Lets only requests with a key through, but for open routes and a browser's preflights."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_routes: frozenset[str]) -> None:
        self._app = app
        # of one length, so that a comparison's time tells nothing of a key
        self._hashes = [_hash(key.encode()) for key in keys]
        self._open_routes = open_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401 itself where the key is missing or wrong."""
        if scope["type"] == "lifespan" or self._is_open(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        error = ApiError(
            401,
            "A valid API key is needed: send it as `Authorization: Bearer KEY`.",
            type="invalid_request_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await send_error(send, error)

    def _is_open(self, scope: Scope) -> bool:
        return scope.get("method") == "OPTIONS" or route_path(scope) in self._open_routes

    def _has_key(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        digest = _hash(key.strip())
        # all are compared, whichever fits
        fits = [hmac.compare_digest(digest, known) for known in self._hashes]
        return scheme.lower() == b"bearer" and any(fits)


class BodyLimit:
    """Answers 413 to a body that is, or turns out to be, longer than allowed."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Counts what the application reads."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > self._most:
            await send_error(send, ApiError(413, self._message(f"{length} bytes"), headers=CLOSE))
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise HTTPException(413, self._message("longer"), CLOSE)
            return message

        await self._app(scope, counted, send)

    def _message(self, given: str) -> str:
        return f"The body is {given}, and no more than {self._most} bytes are allowed. Send less."


CLOSE = {"Connection": "close"}
"""The rest of the body is not read, so the connection is of no more use."""


class RequestIds:
    """Answers with the X-Request-Id of the request; makes one up, where asked to."""

    def __init__(self, app: ASGIApp, make: bool) -> None:
        self._app = app
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application finds the header in the request, made up or not."""
        request_id = None
        if scope["type"] == "http":
            request_id = Headers(scope=scope).get(REQUEST_ID)
            if request_id is None and self._make:
                request_id = uuid.uuid4().hex
                header = (REQUEST_ID.lower().encode(), request_id.encode())
                scope = {**scope, "headers": [*scope["headers"], header]}
        if request_id is None:
            await self._app(scope, receive, send)
            return

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        await self._app(scope, receive, labelled)


class RootPath:
    """Tells the application where a proxy has put it, whether or not the proxy cuts that off."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Adds to the scope."""
        await self._app({**scope, "root_path": self._root_path}, receive, send)


def route_path(scope: Scope) -> str:
    """The path within the application, whether or not a proxy has cut `root_path` off."""
    path, root = scope.get("path", ""), scope.get("root_path", "").rstrip("/")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


async def send_error(send: Send, error: ApiError) -> None:
    """Answers with an error, in OpenAI's shape."""
    content = json.dumps(error_body(error)).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        **error.headers,
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
