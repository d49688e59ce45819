"""Traced programs on disk, beside JAX's cache of compiled ones.

JAX traces and lowers a program before it looks it up, in Python, which takes longer than anything
else in a start whose programs are all compiled. What is stored is data, StableHLO in a flatbuffer.
"""

import functools
import hashlib
import importlib
import os
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax import export

from ..pallas_kernels.peer_memory import Mailbox
from . import sampler
from .device_state import DeviceState, TokenTables
from .step import StepOutput

_SOURCES = ("engine", "models", "pallas_kernels", "lora", "multimodal")
"""Folders whose code decides what a program is."""

_MOSAIC = b"mosaic_gpu"
"""Is in the code of a program with kernels."""

export.register_namedtuple_serialization(Mailbox, serialized_name="quire.Mailbox")
for _node in (DeviceState, TokenTables, StepOutput, sampler.LogprobResult):
    export.register_pytree_node_serialization(
        _node,
        serialized_name=f"quire.{_node.__name__}",
        serialize_auxdata=lambda _: b"",
        deserialize_auxdata=lambda _: (),
    )


class ProgramCache:
    """The traced programs of one model at one set of sizes."""

    def __init__(self, folder: Path | None, identity: Sequence[object]) -> None:
        """Keeps programs in `folder`; None keeps none.

        Args:
            identity: what programs depend on beside their keys, Quire's code and the device; its
                `repr` must tell all of it.
        """
        self._folder = folder
        self._identity = repr(identity)

    def lower(
        self, key: object, function: Any, donated: tuple[int, ...], *args: Sequence[Any]
    ) -> list[jax.stages.Lowered]:
        """The jitted `function`, lowered for each of `args`, the `donated` ones of which it may
        reuse. It is traced once: they may differ in the devices alone, and not in their number."""
        if self._folder is None and len(args) == 1:
            return [function.lower(*args[0])]
        exported = self._read(key)
        if exported is None:
            exported = export.export(function)(*args[0])
            self._write(key, exported)
        if _MOSAIC in exported.mlir_module_serialized:
            importlib.import_module("jax.experimental.mosaic.gpu")  # tells XLA its runtime library
        call = jax.jit(exported.call, donate_argnums=donated)
        return [call.lower(*one) for one in args]

    def _read(self, key: object) -> export.Exported | None:
        if self._folder is None:
            return None
        try:
            return export.deserialize(bytearray(self._path(key).read_bytes()))
        except Exception:  # missing, or left half written, or of another layout: made anew
            return None

    def _write(self, key: object, exported: export.Exported) -> None:
        """All or nothing, since other processes read and write here too."""
        if self._folder is None:
            return
        path, data = self._path(key), bytes(exported.serialize())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(data)
            os.replace(file.name, path)
        except OSError:  # a cache that cannot be written makes nothing fail
            return

    def _path(self, key: object) -> Path:
        assert self._folder is not None
        told = f"{_environment()} {self._identity} {key!r}"
        return self._folder / f"{hashlib.sha256(told.encode()).hexdigest()}.stablehlo"


@functools.cache
def _environment() -> str:
    """Versions, the device, and a digest of the code that makes programs."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for source in sorted(p for name in _SOURCES for p in (root / name).resolve().rglob("*.py")):
        digest.update(source.read_bytes())
    device = jax.devices()[0]
    versions = f"jax {jax.__version__} jaxlib {metadata.version('jaxlib')}"
    return f"{versions} {device.platform} {device.device_kind} {digest.hexdigest()}"
