"""Runs programs on the device: owns the weights and the device state, which they read and write.

Whatever an engine does on a device is `execute`: a program by its name and arrays of the host.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ..models.shards import TENSOR
from . import mailbox
from .buckets import Auxiliary, Encoding, Program, Variant
from .device_state import RunnerConfig, new_features, new_state, new_tables, state_specs
from .mesh import devices_of, made
from .processes import Leader, explained
from .programs import Key, Programs, ProgramsOfOne

if TYPE_CHECKING:
    from .model import ModelSpec


_HOLES = 32
"""Of each size, on each device."""
_SIZES = tuple(4**power for power in range(4, 10))
"""Bytes, from 256 to 256 KiB: what a step is given and what it gives."""


class Executor:
    """The device's half of a `ModelRunner`. Nothing in it waits for the device."""

    def __init__(
        self, spec: "ModelSpec", config: RunnerConfig, programs: Programs | ProgramsOfOne
    ) -> None:
        """Uses no device memory; `start` brings the weights, loaded while `programs` compile."""
        self.leader: Leader | None = None
        """Tells other processes what is executed here, where there are any."""
        self._spec = spec
        self._config = config
        self.programs = programs
        self.params: dict[str, jax.Array] = {}
        """New ones may take their place: programs that were started before keep the old ones."""
        self.adapters: dict[str, jax.Array] | None = None
        self.state: Any = None
        self._features: jax.Array | None = None
        self._mailbox: mailbox.Mailbox | None = None
        self._tables: Any = None
        self._walls: list[jax.Array] = []

    def start(self, params: dict[str, jax.Array]) -> None:
        """Takes the weights and allocates the device state."""
        self.params = params
        spec, config, every = self._spec, self._config, PartitionSpec()
        self.state = made(lambda: new_state(spec, config), state_specs(spec), spec.mesh)
        self._tables = made(lambda: new_tables(spec, config), every, spec.mesh)
        if spec.adapters is not None:
            self.adapters = made(spec.adapters.new_arrays, spec.adapters.specs, spec.mesh)
        self._features = made(lambda: new_features(spec, config), every, spec.mesh)
        if config.mailbox and spec.mesh is not None:
            self._mailbox = mailbox.connected(mailbox.new_mailbox(spec, spec.mesh), spec.mesh)
        if jax.default_backend() == "gpu":
            self._walls = _holes_between(devices_of(spec.mesh))

    def execute(self, key: Key, *arrays: Any) -> Any:
        """Starts a program, and returns what it gives beside what it writes here.

        Args:
            arrays: numpy, or a dict of such, as the program takes them behind its device arrays.

        Raises EngineClosedError where another process that takes part is lost.
        """
        if self.leader is None:
            return self._execute(key, *arrays)
        with explained(self.leader):
            self.leader.send(key, arrays)
            return self._execute(key, *arrays)

    def wait(self, array: jax.Array) -> None:
        """Waits for an array that a program gives, as long as all processes are there.

        Raises EngineClosedError where one is lost.
        """
        if self.leader is not None:
            with explained(self.leader):
                self.leader.wait(array)

    def _execute(self, key: Key, *arrays: Any) -> Any:
        compiled = self.programs.exactly(key)
        match key:
            case Program():
                tables = self._tables if key.variant >= Variant.PENALIZED else None
                self.state, tables, output = compiled(
                    self.params,
                    self.adapters if key.adapters else None,
                    None if key.decode else self._features,
                    self._mailbox,
                    self.state,
                    tables,
                    *arrays,
                )
                if tables is not None:
                    self._tables = tables
                return output
            case Encoding():
                self._features = compiled(self.params, self._features, *arrays)
            case Auxiliary.PATCH_PAGES:
                self.state = compiled(self.state, *arrays)
            case Auxiliary.WRITE_TABLES | Auxiliary.WRITE_BIAS | Auxiliary.WRITE_MASKS:
                self._tables = compiled(self._tables, *arrays)
            case Auxiliary.WRITE_ADAPTER:
                slot, packed = arrays
                self.adapters = compiled(self.adapters, slot, self._cut(packed))
            case Auxiliary.TOP_LOGPROBS | Auxiliary.ALL_LOGPROBS:
                return compiled(self.params, self.adapters, *arrays)

    def _cut(self, packed: Any) -> Any:
        """What is cut among devices, where this process does not see them all."""
        if jax.process_count() == 1 or self._spec.mesh is None:
            return packed
        place = NamedSharding(self._spec.mesh, PartitionSpec(TENSOR))
        return jax.make_array_from_callback(packed.shape, place, lambda index: packed[index])

    def close(self) -> None:
        """Lets other processes go, and gives the device memory back."""
        if self.leader is not None:
            self.leader.close()
        owned = self.params, self.adapters, self._features, self.state, self._tables, self._mailbox
        for leaf in jax.tree.leaves((owned, self._walls)):
            if not leaf.is_deleted():
                leaf.delete()
        self.params, self.adapters, self._features, self._mailbox = {}, None, None, None


def _holes_between(devices: Sequence[jax.Device]) -> list[jax.Array]:
    """Arrays that leave room for small ones between them.

    A CUDA graph is made anew, node by node, where the addresses of what it works on have changed.
    Without these, small arrays that live a little longer than a step take a corner of the room for
    the step's temporaries, which then move, and with them everything.
    """
    walls: list[jax.Array] = []
    for device in devices:
        if device.process_index == jax.process_index():
            for size in _SIZES:
                rows = [jax.device_put(np.zeros(size, np.uint8), device) for _ in range(2 * _HOLES)]
                jax.block_until_ready(rows)
                walls += rows[::2]
                for hole in rows[1::2]:
                    hole.delete()
    return walls
