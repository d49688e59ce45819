"""What one process tells another to run: the name of a program and arrays, as bytes. No pickle."""

import dataclasses
import json
import struct
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from .buckets import Auxiliary, Encoding, Program, Variant

Key = Program | Auxiliary | Encoding
_LENGTH = struct.Struct("!I")


def packed(key: Key, arrays: tuple[Any, ...]) -> bytes:
    """A message. Each of `arrays` is a numpy array, or a dict of those by name."""
    buffers: list[np.ndarray] = []

    def described(given: Any) -> Any:
        if isinstance(given, Mapping):
            return {name: described(one) for name, one in given.items()}
        array = np.ascontiguousarray(given)
        buffers.append(array)
        return [array.dtype.name, np.shape(given)]

    header = json.dumps([_named(key), [described(one) for one in arrays]]).encode()
    return b"".join([_LENGTH.pack(len(header)), header, *(b.tobytes() for b in buffers)])


def unpacked(message: bytes) -> tuple[Key, tuple[Any, ...]]:
    """The inverse of `packed`. The arrays are views of the message."""
    [length] = _LENGTH.unpack_from(message)
    begin = _LENGTH.size
    name, described = json.loads(message[begin : begin + length])
    offset = begin + length

    def array(given: Any) -> Any:
        nonlocal offset
        if isinstance(given, dict):
            return {name: array(one) for name, one in given.items()}
        dtype, shape = jnp.dtype(given[0]), tuple(given[1])
        count = int(np.prod(shape))
        made = np.frombuffer(message, dtype, count, offset).reshape(shape)
        offset += made.nbytes
        return made

    return _key(name), tuple(array(one) for one in described)


def _named(key: Key) -> list[Any]:
    match key:
        case Auxiliary():
            return ["auxiliary", key.name]
        case Encoding():
            return ["encoding", key.kind, key.units]
        case Program():
            return ["step", *(int(value) for value in dataclasses.astuple(key))]


def _key(named: list[Any]) -> Key:
    kind, *values = named
    match kind:
        case "auxiliary":
            return Auxiliary[values[0]]
        case "encoding":
            return Encoding(*values)
        case _:
            decode, tokens, rows, variant, one_path, adapters = values
            flags = bool(one_path), bool(adapters)
            return Program(bool(decode), tokens, rows, Variant(variant), *flags)
