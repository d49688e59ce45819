"""Several processes that run one engine: the first schedules, the others run what it tells them.

JAX connects them (`jax.distributed`) and sees the devices of all. Every process must run the same
programs in the same order; so the first sends each, with its arrays, to the others before it runs
it. They speak over TCP, with a key that goes through JAX's coordination service.
"""

import contextlib
import itertools
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ..errors import EngineClosedError, OptionError
from .mesh import devices_of
from .messages import Key, packed, unpacked

log = logging.getLogger("quire")

AUTO = "auto"
"""A coordinator's address that is found in the cluster's environment."""
_HEARTBEAT = 25
"""Seconds after which a process that says nothing counts as lost, for JAX."""
_SHUTDOWN = 15
"""Seconds that JAX lets processes wait for each other at their ends."""
_MEETING = 600
"""Seconds for all processes to come to the same engine."""
_PAUSE = 5e-5
"""Seconds. The device has a step more to do meanwhile, so that being late costs nothing."""
_PATIENCE = 5.0
"""Seconds in which a process that ended is noticed: its machine closes its connections."""
_engines = itertools.count()
"""Engines made by this process; all make the same ones in the same order."""


def join(address: str | None, count: int | None, number: int | None) -> None:
    """Has JAX connect `count` processes, of which this one has a number, unless it has done so.

    Args:
        address: of the coordinator, as the options have it.

    Raises OptionError.
    """
    if address is None:
        if (count, number) != (None, None):
            raise OptionError(
                "num_processes and process_id need coordinator_address: the host and a free port "
                "of process 0, as in '10.0.0.1:1234', or 'auto' on clusters that JAX knows."
            )
        return
    if distributed.global_state.client is not None:
        return
    if address == AUTO:
        known = {}
    elif count is None or number is None:
        raise OptionError(
            f"coordinator_address={address!r} needs num_processes, and process_id from 0."
        )
    elif not 0 <= number < count:
        raise OptionError(
            f"process_id={number} must be from 0 to {count - 1}: there are num_processes={count}."
        )
    else:
        known = {"coordinator_address": address, "num_processes": count, "process_id": number}
        known["cluster_detection_method"] = "deactivate"
    try:
        jax.distributed.initialize(
            **known, heartbeat_timeout_seconds=_HEARTBEAT, shutdown_timeout_seconds=_SHUTDOWN
        )
    except (RuntimeError, ValueError) as error:
        raise OptionError(
            f"JAX could not connect the processes of coordinator_address={address!r}: {error}"
        ) from error


def leads(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    **options: Any,
) -> bool:
    """Whether this process takes requests, of those that engine options speak of.

    Has JAX connect them before, as `Engine` does. Raises OptionError.
    """
    join(coordinator_address, num_processes, process_id)
    return distributed.global_state.process_id == 0  # asking JAX would start its devices


class Leader:
    """The first process's connections to the others."""

    def __init__(self) -> None:
        """Waits for all of them. Raises EngineClosedError where one does not come."""
        self._lost: str | None = None
        self._closed = False
        self._connections: dict[int, Connection] = {}
        name, key = _meeting_place(), secrets.token_bytes(32)
        with Listener(("", 0), backlog=jax.process_count(), authkey=key) as listener:
            told = f"{_own_host()} {listener.address[1]} {key.hex()}"
            _service().key_value_set(name, told)
            _limit(listener, _MEETING)
            while len(self._connections) < jax.process_count() - 1:
                connection = _accepted(listener)
                self._connections[int.from_bytes(connection.recv_bytes(4))] = connection
        for number, connection in self._connections.items():
            _at_once(connection)
            threading.Thread(
                target=self._watch, args=(number, connection), name="quire-watch", daemon=True
            ).start()

    def send(self, key: Key, arrays: tuple[Any, ...]) -> None:
        """Has the others run a program. Raises EngineClosedError where one is lost."""
        message = packed(key, arrays)
        for number, connection in self._connections.items():
            self.check()
            try:
                connection.send_bytes(message)
            except OSError:
                self._lost = self._lost or _lost(number)
        self.check()

    def check(self) -> None:
        """Raises EngineClosedError where a process is lost."""
        if self._lost is not None:
            raise EngineClosedError(self._lost)

    def wait(self, array: jax.Array) -> None:
        """Waits for an array, no longer than all are there. Raises EngineClosedError."""
        while not array.is_ready():
            self.check()
            time.sleep(_PAUSE)

    def close(self) -> None:
        """Lets the others go."""
        self._closed = True
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.send_bytes(b"")
                connection.close()

    def _watch(self, number: int, connection: Connection) -> None:
        """The others say nothing, so that there is but one thing to hear."""
        with contextlib.suppress(EOFError, OSError):
            connection.recv_bytes()
        if not self._closed and self._lost is None:
            self._lost = _lost(number)
            log.error("%s", self._lost)


class Follower:
    """The connection of another process to the first."""

    def __init__(self) -> None:
        """Raises EngineClosedError where the first does not come."""
        name = _meeting_place()
        try:
            told = _service().blocking_key_value_get(name, _MEETING * 1000)
            host, port, key = told.split()
            self._connection = Client((host, int(port)), authkey=bytes.fromhex(key))
        except (OSError, AuthenticationError, jax.errors.JaxRuntimeError) as error:
            raise EngineClosedError(f"process 0 could not be reached: {error}") from error
        _at_once(self._connection)
        self._connection.send_bytes(jax.process_index().to_bytes(4))

    def messages(self) -> Iterator[tuple[Key, tuple[Any, ...]]]:
        """Programs to run, and their arrays, until the first process lets this one go.

        Raises EngineClosedError where that is lost.
        """
        while True:
            try:
                message = self._connection.recv_bytes()
            except (EOFError, OSError):
                log.error("%s", _lost(0))  # JAX is about to end this process, too
                raise EngineClosedError(_lost(0)) from None
            if not message:
                return
            yield unpacked(message)

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def explained(leader: Leader) -> Iterator[None]:
    """Turns an error of the device that a lost process is the cause of into one that says so."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        patience = time.monotonic() + _PATIENCE
        while time.monotonic() < patience:
            try:
                leader.check()
            except EngineClosedError as lost:
                raise lost from error
            time.sleep(_PAUSE)
        raise


def _lost(number: int) -> str:
    return (
        f"process {number} of {jax.process_count()} was lost, so the engine stopped on all of "
        "them. Its own output says why; start all processes again."
    )


def _meeting_place() -> str:
    return f"quire/engine/{next(_engines)}"


def _service() -> Any:
    client = distributed.global_state.client
    assert client is not None, "only asked for by several processes"
    return client


def _own_host() -> str:
    """This process's, the first's, by the name that the others know it by."""
    address = distributed.global_state.coordinator_address or f"{socket.gethostname()}:0"
    return address.rpartition(":")[0].strip("[]")


def _limit(listener: Listener, seconds: float) -> None:
    listener._listener._socket.settimeout(seconds)  # type: ignore[attr-defined]


def _accepted(listener: Listener) -> Connection:
    try:
        connection = listener.accept()
    except (OSError, EOFError, AuthenticationError) as error:
        raise EngineClosedError(f"not all processes came: {error!r}.") from error
    assert isinstance(connection, Connection)
    return connection


def _at_once(connection: Connection) -> None:
    """Has what is sent leave at once: each message is one that somebody waits for."""
    with socket.socket(fileno=os.dup(connection.fileno())) as own:
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def check_mesh(mesh: Mesh | None, replicas: int) -> None:
    """Raises OptionError where not every process has a share of the one replica."""
    if jax.process_count() == 1:
        return
    taken = {device.process_index for device in devices_of(mesh)}
    if replicas > 1 or len(taken) < jax.process_count():
        raise OptionError(
            f"{jax.process_count()} processes share one model: tensor_parallel_size must take "
            f"devices of each (there are {jax.device_count()}), and data_parallel_size be 1. For "
            "replicas run an engine in each process, without coordinator_address."
        )


def agreed(number: int) -> int:
    """The least of the numbers that the processes have."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int64(number)).min())
