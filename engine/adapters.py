"""The adapters of an engine: from what a request names to what a step applies."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from ..errors import OptionError
from ..lora.request import LoRARequest
from .adapter_arrays import AdapterSpec, LoadedAdapter
from .adapter_files import read_adapter_folder
from .adapter_slots import AdapterSlots
from .adapter_store import AdapterStore
from .options import EngineOptions
from .page_pool import PagePool
from .prompts import Prompt
from .reading import Job, Reading

_FEW = 16
"""Adapters that host memory keeps at least, unless an option says otherwise."""


class Adapters:
    """Loads adapters and forgets them. Only `remove` touches what the engine's loop uses."""

    def __init__(
        self,
        spec: AdapterSpec,
        options: EngineOptions,
        params: Callable[[], Mapping[str, jax.Array]],
        places: Sequence[tuple[AdapterSlots, PagePool]],
    ) -> None:
        """`params` gives the weights of the model as they are, `places` what each replica has."""
        self._spec = spec
        self._options = options
        self._params = params
        self._places = places
        capacity = options.max_cpu_loras or max(options.max_loras, _FEW)
        self._store = AdapterStore(self._load, capacity)

    def get(self, request: object) -> LoadedAdapter:
        """The adapter, loaded if need be. Raises AdapterError or OptionError."""
        return self._store.get(_checked(request))

    def add(self, request: object) -> bool:
        """Loads an adapter; False where it was loaded. Raises AdapterError or OptionError."""
        return self._store.add(_checked(request))

    def remove(self, lora_int_id: int) -> bool:
        """Forgets an adapter, in host memory, slots and cached pages; False if it is not known."""
        adapter = self._store.remove(lora_int_id)
        if adapter is None:
            return False
        for slots, pool in self._places:
            slots.forget(adapter.digest)
            pool.forget(adapter.digest)
        return True

    def pin(self, lora_int_id: int) -> bool:
        """Keeps an adapter in host memory; False if it is not known."""
        return self._store.pin(lora_int_id)

    def ids(self) -> set[int]:
        """Of the adapters that are known."""
        return self._store.list()

    def _load(self, request: LoRARequest) -> LoadedAdapter:
        options = self._options
        base = dataclasses.replace(self._spec.base, params=self._params())
        adapter = read_adapter_folder(
            request, base, max_rank=options.max_lora_rank, download_dir=options.download_dir
        )
        return self._spec.pack(request, adapter)


def required(adapters: Adapters | None) -> Adapters:
    """Those of an engine. Raises OptionError where it takes none."""
    if adapters is None:
        raise OptionError("this engine takes no adapters. Make it with enable_lora=True.")
    return adapters


def given_to(reading: Reading, lora_request: Any, adapters: Adapters | None) -> Reading:
    """The prompts, each with its adapter: one for all, or one or None for each.

    Raises AdapterError or OptionError.
    """
    if lora_request is None:
        return reading
    each = [lora_request] * len(reading)
    if isinstance(lora_request, Sequence) and not isinstance(lora_request, str):
        each = list(lora_request)
    if len(each) != len(reading):
        raise OptionError(
            f"lora_request has {len(each)} entries for {len(reading)} prompts: give one, or one "
            "or None each."
        )
    known = required(adapters)
    asked = dict.fromkeys(_checked(one) for one in each if one is not None)
    loaded = {one: known.get(one) for one in asked}
    jobs = [
        job if one is None else functools.partial(_read_for, loaded[one], job)
        for job, one in zip(reading.jobs, each, strict=True)
    ]
    return Reading(jobs, reading.threads)


def _read_for(adapter: LoadedAdapter, job: Job) -> Prompt:
    return dataclasses.replace(job(), adapter=adapter)


def _checked(request: object) -> LoRARequest:
    if not isinstance(request, LoRARequest):
        raise OptionError(
            f"lora_request={request!r} must be a LoRARequest, such as "
            "LoRARequest('my-adapter', 1, '/folder/of/the/adapter')."
        )
    return request
