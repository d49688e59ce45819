"""The adapters of a server: by name, loaded when it starts or by its clients."""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import time
import weakref
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ... import AdapterError, AsyncEngine, LoRARequest, OptionError
from .errors import ApiError, bad_request
from .lora_modules import LoRAModule

logger = logging.getLogger(__name__)

AT_ONCE = 2
"""Adapters that load at once: each takes a thread of those that tokenize, too."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter that requests may name."""

    request: LoRARequest
    """What the engine is told of it."""
    created: int
    """When it was loaded, in seconds since 1970."""


class Adapters:
    """Adapters by name, the longest known first. Everything is used on one event loop at a time.

    The engine is always told to read the files again, and of a name always the same id: what it
    knows of a name is then replaced, whichever requests began with what was there before.
    """

    def __init__(
        self, engine: AsyncEngine, model_names: Collection[str], roots: Sequence[str]
    ) -> None:
        """`roots` are the folders that clients may load from; empty allows everything."""
        self._engine = engine
        self._model_names = model_names
        self._roots = [Path(root).resolve() for root in roots]
        self._served: dict[str, ServedAdapter] = {}
        self._ids: dict[str, int] = {}  # of all names that were ever loaded
        self._next_id = itertools.count(1)
        self._locks = weakref.WeakValueDictionary[str, asyncio.Lock]()
        self._room = asyncio.Semaphore(AT_ONCE)

    def __iter__(self) -> Iterator[ServedAdapter]:
        return iter(self._served.values())

    def get(self, name: str) -> ServedAdapter | None:
        """The adapter of that name, if there is one."""
        return self._served.get(name)

    async def start(self, modules: Sequence[LoRAModule]) -> None:
        """Loads adapters before clients come. Raises AdapterError or OptionError."""
        for module in modules:
            await self._load(module)

    async def load(self, name: str, path: str, *, in_place: bool) -> None:
        """Loads an adapter for a client; while that fails or lasts, the one before it serves on.

        Raises ApiError where there is one of that name and it is not to be replaced, where the path
        is not allowed, and for an adapter that cannot be used.
        """
        self._check_enabled()
        if name in self._model_names:
            raise bad_request(
                f"lora_name={name!r} is a name of the model. Give the adapter another one.",
                "lora_name",
            )
        async with self._lock(name), self._room:
            known = self._served.get(name)
            if known is not None and not in_place:
                raise bad_request(
                    f"The adapter {name!r} has been loaded already, from "
                    f"{known.request.lora_path!r}. Unload it first, or set load_inplace=true.",
                    "lora_name",
                )
            place = await asyncio.to_thread(_within, self._roots, path) if self._roots else path
            base = known.request.base_model_name if known else None
            try:
                await self._load(LoRAModule(name, place, base))
            except AdapterError as error:
                raise bad_request(str(error), "lora_path") from error

    async def unload(self, name: str, lora_int_id: int | None) -> None:
        """Forgets an adapter; requests that have begun end with it.

        Raises ApiError where there is none of that name, or where it has another id.
        """
        self._check_enabled()
        async with self._lock(name):
            known = self._served.get(name)
            if known is None:
                there = ", ".join(self._served) or "none"
                message = f"There is no adapter {name!r}. Loaded: {there}."
                raise ApiError(404, message, param="lora_name")
            own_id = known.request.lora_int_id
            if lora_int_id not in (None, own_id):
                raise bad_request(
                    f"lora_int_id={lora_int_id} is not that of {name!r}, which is {own_id}: the "
                    "server numbers adapters itself. Leave it out.",
                    "lora_int_id",
                )
            del self._served[name]
            await self._engine.remove_lora(own_id)
            logger.info("unloaded adapter %r", name)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Raises ApiError where the engine refuses a request since its adapter was replaced."""
        try:
            yield
        except OptionError as error:
            # ids are given out here, so only a replaced adapter can be at odds with its own
            if not str(error).startswith("lora_int_id="):
                raise
            message = "The adapter has just been replaced. Try again."
            raise ApiError(503, message, headers={"Retry-After": "1"}) from error

    async def _load(self, module: LoRAModule) -> None:
        own_id = self._ids.get(module.name) or next(self._next_id)
        request = LoRARequest(module.name, own_id, module.path, module.base_model_name)
        await self._engine.add_lora(dataclasses.replace(request, load_inplace=True))
        self._ids[module.name] = own_id
        self._served[module.name] = ServedAdapter(request, int(time.time()))
        logger.info("loaded adapter %r from %r", module.name, module.path)

    def _lock(self, name: str) -> asyncio.Lock:
        """That of a name; it lives for as long as somebody holds it."""
        return self._locks.setdefault(name, asyncio.Lock())

    def _check_enabled(self) -> None:
        if not self._engine.options.enable_lora:
            raise bad_request("This server takes no adapters. Start it with --enable-lora.")


def _within(roots: Sequence[Path], path: str) -> str:
    """The folder at `path`, symlinks followed.

    Raises ApiError unless it and what it holds lie under one of the roots.
    """
    try:
        folder = Path(path).resolve()
        places = [folder]
        if _is_under(roots, folder):  # of what lies elsewhere nobody learns whether it exists
            places += [one.resolve() for one in folder.iterdir()]
    except (OSError, RuntimeError, ValueError) as error:
        raise bad_request(f"lora_path={path!r} cannot be read: {error}.", "lora_path") from error
    for place in places:
        if not _is_under(roots, place):
            raise bad_request(
                f"lora_path={path!r} is not allowed: it leads out of "
                f"{', '.join(map(str, roots))}, where the adapters of this server lie.",
                "lora_path",
            )
    return str(folder)


def _is_under(roots: Sequence[Path], place: Path) -> bool:
    return any(place.is_relative_to(root) for root in roots)
