"""Streams the tensors of a checkpoint to their places on the device, several at a time."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import CheckpointError, MemoryBudgetError
from ...models.checkpoint_map import CheckpointMap
from .layout import PARAMS_DIR
from .orbax_dir import load_orbax
from .parts import FoundPart, open_joined
from .plan import ParamPlan, plan_params

if TYPE_CHECKING:
    import jax
    from jax.sharding import Sharding

_BYTES_IN_FLIGHT = 2 << 30


class ByteBudget:
    """Lets threads hold at most `limit` bytes together; who asks for more waits."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, nbytes: int) -> Iterator[None]:
        """Holds `nbytes`, at most `limit`, until the block is left."""
        with self._changed:
            self._changed.wait_for(lambda: self.held + nbytes <= self.limit)
            self.held += nbytes
        try:
            yield
        finally:
            with self._changed:
                self.held -= nbytes
                self._changed.notify_all()


def load_params(
    folder: Path,
    shapes: Mapping[str, "jax.ShapeDtypeStruct"],
    cmap: CheckpointMap,
    *,
    parts: Iterable[FoundPart] = (),
    sharding: "Sharding | Mapping[str, Sharding] | None" = None,
    copies: Mapping[str, int] | None = None,
    progress: bool = True,
    workers: int = 8,
) -> "dict[str, jax.Array]":
    """The parameters of a model from the checkpoint in `folder`, on the device.

    Each parameter is put together in one host buffer of its final type, sent, and let go; no more
    than 2 GiB (or the largest parameter) is on the way at a time.

    Args:
        folder: of Hugging Face layout, or one that `save_params` wrote.
        shapes: shape and type of every parameter, by dotted path.
        cmap: how the checkpoint's tensors fill them. A folder of `save_params` needs none of it.
        parts: of the model, which have tensors that the folder may lack.
        sharding: of all parameters, or of each; None is the default device.
        copies: how many of each KV head a parameter holds, where that is not 1: a folder of
            `save_params` has one, and `cmap` leads to all.
        progress: whether to show a bar, in bytes.
        workers: threads that read.

    Raises:
        CheckpointError: no weights, damaged files, or anything that does not fit the model; all
            differences are in one error, and found before any tensor is read.
        UnsafeCheckpointError: a pickle asks for something other than tensors.
        MemoryBudgetError: the parameters do not fit in the device's memory.
    """
    shardings = _shardings(shapes, sharding)
    if (folder / PARAMS_DIR).is_dir():
        return load_orbax(folder, shapes, shardings, copies)
    plans = plan_params(folder, open_joined(folder, cmap, parts), shapes, cmap)
    budget = ByteBudget(max([_BYTES_IN_FLIGHT, *(plan.nbytes for plan in plans)]))
    executor = ThreadPoolExecutor(workers, thread_name_prefix="quire-load")
    try:
        futures = {
            executor.submit(_load, plan, shardings[plan.name], budget): plan for plan in plans
        }
        loaded = _collect(futures, progress)
    finally:
        executor.shutdown(cancel_futures=True)
    return {plan.name: loaded[plan.name] for plan in plans}


def _shardings(
    names: Mapping[str, object], sharding: "Sharding | Mapping[str, Sharding] | None"
) -> "dict[str, Sharding]":
    import jax

    if isinstance(sharding, Mapping):
        return {name: sharding[name] for name in names}
    # asked for here, as a default device set by a `with` counts in this thread only
    everywhere = sharding or jax.device_put(np.zeros((), np.int32)).sharding
    return dict.fromkeys(names, everywhere)


def _collect(
    futures: "Mapping[Future[jax.Array], ParamPlan]", progress: bool
) -> "dict[str, jax.Array]":
    from tqdm.auto import tqdm

    total = sum(plan.nbytes for plan in futures.values())
    loaded = {}
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="Loading weights", disable=not progress
    ) as bar:
        for future in as_completed(futures):
            loaded[futures[future].name] = future.result()
            bar.update(futures[future].nbytes)
    return loaded


def _placed(host: "np.ndarray", sharding: "Sharding") -> "jax.Array":
    import jax

    if jax.process_count() == 1:
        return jax.device_put(host, sharding)
    # `device_put` would have the processes compare what each has read
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _load(plan: ParamPlan, sharding: "Sharding", budget: ByteBudget) -> "jax.Array":
    import jax

    on_cpu = any(device.platform == "cpu" for device in sharding.device_set)
    with budget.hold(plan.nbytes):
        # on a CPU an array may share its memory with the buffer, so that must not be the file
        host = None if on_cpu else _as_stored(plan)
        try:
            array = _placed(assemble(plan) if host is None else host, sharding)
            array.block_until_ready()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise _out_of_memory(plan) from error
        for fill in plan.fills:
            fill.file.release(fill.source)
    return array


def _as_stored(plan: ParamPlan) -> np.ndarray | None:
    """The parameter as a view of the file, where it lies there just as it is needed."""
    if len(plan.fills) != 1:
        return None
    source = plan.fills[0].source
    usable = source.flags.c_contiguous and source.flags.aligned and source.dtype == plan.dtype
    return source.reshape(plan.shape) if usable else None


def assemble(plan: ParamPlan) -> np.ndarray:
    """The parameter in a new host array, each piece converted while it is copied.

    Raises:
        CheckpointError: float16 cannot hold one of the values.
    """
    buffer = np.empty(plan.shape, plan.dtype)
    with np.errstate(over="ignore"):
        for fill in plan.fills:
            buffer[fill.index] = fill.source.reshape(fill.shape)
    narrowed = any(fill.source.dtype != plan.dtype for fill in plan.fills)
    if plan.dtype == np.float16 and narrowed and np.isinf(buffer).any():
        raise CheckpointError(
            f"Parameter {plan.name} has values beyond 65504, which float16 cannot hold. Load the "
            "model with dtype='bfloat16' or dtype='float32'."
        )
    return buffer


def _out_of_memory(plan: ParamPlan) -> MemoryBudgetError:
    return MemoryBudgetError(
        f"The device has no memory left for parameter {plan.name} ({plan.nbytes / 2**30:.2f} GiB). "
        "Use a smaller model, a 16-bit dtype, or a device with more free memory."
    )
