import io
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from quire.engine.checkpoint import load_params, loader
from quire.engine.checkpoint.loader import ByteBudget, assemble
from quire.engine.checkpoint.plan import ParamPlan
from quire.errors import CheckpointError, MemoryBudgetError
from quire.models.checkpoint_map import CheckpointMap, Piece

Write = Callable[..., None]

LAYERS, KV_HEADS, GROUP, HEAD, WIDTH, FF, VOCAB = 2, 2, 2, 4, 16, 24, 50
ALL = slice(None)


def tiny_map() -> CheckpointMap:
    """A small Llama: fused qkv, gate and up as rows of one tensor, old names, known extras."""
    pieces = [Piece("embed.weight", "embed"), Piece("norm.weight", "norm")]
    for i in range(LAYERS):
        pieces += [
            Piece(f"layers.{i}.q.weight", f"layers.{i}.qkv", (ALL, slice(0, GROUP))),
            Piece(f"layers.{i}.k.weight", f"layers.{i}.qkv", (ALL, GROUP)),
            Piece(f"layers.{i}.v.weight", f"layers.{i}.qkv", (ALL, GROUP + 1)),
            Piece(f"layers.{i}.gate_up.weight", f"layers.{i}.gate_up", 0, slice(0, FF)),
            Piece(f"layers.{i}.gate_up.weight", f"layers.{i}.gate_up", 1, slice(FF, None)),
        ]
    return CheckpointMap(
        tuple(pieces),
        ignored=(r"layers\.\d+\.inv_freq", r"lm_head\.weight"),
        canonical=lambda name: name.removeprefix("model."),
    )


def tiny_shapes(dtype: Any = np.float32) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {"embed": (VOCAB, WIDTH), "norm": (WIDTH,)}
    for i in range(LAYERS):
        shapes[f"layers.{i}.qkv"] = (KV_HEADS, GROUP + 2, HEAD, WIDTH)
        shapes[f"layers.{i}.gate_up"] = (2, FF, WIDTH)
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}


def tiny_tensors(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(dtype)

    tensors = {"model.embed.weight": weight(VOCAB, WIDTH), "model.norm.weight": weight(WIDTH)}
    for i in range(LAYERS):
        tensors |= {
            f"model.layers.{i}.q.weight": weight(KV_HEADS * GROUP * HEAD, WIDTH),
            f"model.layers.{i}.k.weight": weight(KV_HEADS * HEAD, WIDTH),
            f"model.layers.{i}.v.weight": weight(KV_HEADS * HEAD, WIDTH),
            f"model.layers.{i}.gate_up.weight": weight(2 * FF, WIDTH),
            f"model.layers.{i}.inv_freq": weight(2),
        }
    return tensors


def expected(tensors: dict[str, np.ndarray], dtype: Any) -> dict[str, np.ndarray]:
    """The same by plain numpy."""
    params = {"embed": tensors["model.embed.weight"], "norm": tensors["model.norm.weight"]}
    for i in range(LAYERS):
        q, k, v, gate_up = (
            tensors[f"model.layers.{i}.{name}.weight"] for name in ("q", "k", "v", "gate_up")
        )
        heads = [a.reshape(KV_HEADS, -1, HEAD, WIDTH) for a in (q, k, v)]
        params[f"layers.{i}.qkv"] = np.concatenate(heads, axis=1)
        params[f"layers.{i}.gate_up"] = np.stack([gate_up[:FF], gate_up[FF:]])
    return {name: array.astype(dtype) for name, array in params.items()}


def check(params: dict[str, jax.Array], tensors: dict[str, np.ndarray], dtype: Any) -> None:
    reference = expected(tensors, dtype)
    assert list(params) == list(tiny_shapes())
    for name, array in params.items():
        np.testing.assert_array_equal(np.asarray(array), reference[name], strict=True)


def load(folder: Path, dtype: Any = np.float32, **options: Any) -> dict[str, jax.Array]:
    return load_params(folder, tiny_shapes(dtype), tiny_map(), **{"progress": False, **options})


FLOATS = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("wanted", FLOATS[:3])
def test_every_float_becomes_every_other(
    tmp_path: Path, write_safetensors: Write, stored: Any, wanted: Any
) -> None:
    tensors = tiny_tensors(stored)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    check(load(tmp_path, wanted), tensors, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("wanted", FLOATS[:3])
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_on_a_gpu(tmp_path: Path, form: str, wanted: Any, request: pytest.FixtureRequest) -> None:
    tensors = tiny_tensors(ml_dtypes.bfloat16)
    name = "model.safetensors" if form == "safetensors" else "pytorch_model.bin"
    request.getfixturevalue(f"write_{form}")(tmp_path / name, tensors)
    params = load(tmp_path, wanted)
    assert params["embed"].devices() == {jax.devices("gpu")[0]}
    check(params, tensors, wanted)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_torch_files(tmp_path: Path, form: str, request: pytest.FixtureRequest) -> None:
    tensors = tiny_tensors(np.float16)
    request.getfixturevalue(f"write_{form}")(tmp_path / "pytorch_model.bin", tensors)
    check(load(tmp_path, ml_dtypes.bfloat16), tensors, ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    ("single", "shard", "form"),
    [
        ("model.safetensors", "model-{}.safetensors", "safetensors"),
        ("pytorch_model.bin", "pytorch_model-{}.bin", "zip"),
        ("pytorch_model.bin", "pytorch_model-{}.bin", "legacy"),
    ],
)
def test_sharded_files(
    tmp_path: Path,
    write_sharded: Write,
    request: pytest.FixtureRequest,
    single: str,
    shard: str,
    form: str,
) -> None:
    tensors = tiny_tensors(np.float32)
    names = sorted(tensors)
    shards = {shard.format(i): {n: tensors[n] for n in names[i::3]} for i in range(3)}
    write_sharded(tmp_path / single, shards, request.getfixturevalue(f"write_{form}"))
    check(load(tmp_path), tensors, np.float32)


@pytest.fixture
def folder(tmp_path: Path, write_safetensors: Write) -> Path:
    write_safetensors(tmp_path / "model.safetensors", tiny_tensors())
    return tmp_path


@pytest.mark.parametrize("workers", [1, 3])
def test_workers(folder: Path, workers: int) -> None:
    check(load(folder, workers=workers), tiny_tensors(), np.float32)


def test_shardings(folder: Path) -> None:
    mesh = jax.make_mesh((1,), ("x",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert all(array.sharding == split for array in load(folder, sharding=split).values())
    each = dict.fromkeys(tiny_shapes(), single) | {"embed": split}
    params = load(folder, sharding=each)
    assert params["embed"].sharding == split
    assert params["norm"].sharding == single
    check(params, tiny_tensors(), np.float32)


def test_parameters_do_not_change_with_the_file(folder: Path) -> None:
    params = load(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(0)
        file.write(bytes(size))
    check(params, tiny_tensors(), np.float32)


def test_the_view_of_the_file_goes_to_other_devices(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: one piece of the right type is not copied on the host."""
    sent: list[np.ndarray] = []
    put = jax.device_put

    class Sharding:
        device_set = frozenset({type("Device", (), {"platform": "gpu"})()})

    def device_put(array: np.ndarray, sharding: object) -> jax.Array:
        sent.append(array)
        return put(array.copy())

    monkeypatch.setattr(jax, "device_put", device_put)
    check(load(folder, sharding=Sharding()), tiny_tensors(), np.float32)
    viewed = {array.shape for array in sent if not array.flags.owndata}
    assert viewed == {(VOCAB, WIDTH), (WIDTH,)}
    sent.clear()
    load(folder, np.float16, sharding=Sharding())
    assert all(array.flags.owndata for array in sent)


def test_problems_are_found_before_anything_is_sent(
    tmp_path: Path, write_safetensors: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = tiny_tensors()
    tensors["model.norm.weight"] = np.zeros(3, np.float32)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    monkeypatch.setattr(loader, "_load", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(CheckpointError, match=r"norm\.weight is \[3\], the model needs \[16\]"):
        load(tmp_path)


@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16])
def test_values_that_float16_cannot_hold(
    tmp_path: Path, write_safetensors: Write, stored: Any
) -> None:
    tensors = tiny_tensors(stored)
    tensors["model.norm.weight"][3] = 1e6
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match="Parameter norm has values beyond 65504.*bfloat16"):
        load(tmp_path, np.float16)
    check(load(tmp_path, ml_dtypes.bfloat16), tensors, ml_dtypes.bfloat16)


def test_a_full_device_is_a_named_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def device_put(array: np.ndarray, sharding: object) -> jax.Array:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    monkeypatch.setattr(jax, "device_put", device_put)
    with pytest.raises(MemoryBudgetError, match=r"no memory left for parameter .*smaller model"):
        load(folder, sharding=sharding)
    assert not [thread for thread in threading.enumerate() if "quire-load" in thread.name]


def test_other_errors_of_the_device_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def device_put(array: np.ndarray, sharding: object) -> jax.Array:
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    monkeypatch.setattr(jax, "device_put", device_put)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        load(folder, sharding=sharding)


def test_progress_counts_bytes(folder: Path) -> None:
    with redirect_stderr(io.StringIO()) as shown:
        load(folder, progress=True)
    assert "Loading weights: 100%" in shown.getvalue()
    assert "B/s" in shown.getvalue()
    with redirect_stderr(io.StringIO()) as shown:
        load(folder, progress=False)
    assert shown.getvalue() == ""


def test_torch_is_not_imported(fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it would fail
    shapes = {"x": jax.ShapeDtypeStruct((2, 3), jnp.float32), "y": jax.ShapeDtypeStruct((4,), "f4")}
    params = load_params(
        fixtures, shapes, CheckpointMap((Piece("a", "x"), Piece("b", "y"))), progress=False
    )
    assert params["y"].tolist() == [0, 1, 2, 3]


def test_loading_keeps_to_the_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(shape.size * 4 for shape in tiny_shapes().values())
    lock = threading.Lock()
    running: list[int] = []
    highest = 0

    def watched(plan: ParamPlan) -> np.ndarray:
        nonlocal highest
        with lock:
            running.append(plan.nbytes)
            highest = max(highest, sum(running))
        time.sleep(0.01)
        with lock:
            running.remove(plan.nbytes)
        return assemble(plan)

    monkeypatch.setattr(loader, "_BYTES_IN_FLIGHT", 1)
    monkeypatch.setattr(loader, "assemble", watched)
    check(load(folder), tiny_tensors(), np.float32)
    assert highest == largest


def test_bytes_on_the_way_are_bounded() -> None:
    budget = ByteBudget(100)
    highest = 0
    lock = threading.Lock()

    def hold(nbytes: int) -> None:
        nonlocal highest
        with budget.hold(nbytes), lock:
            highest = max(highest, budget.held)

    sizes = [100, 60, 40, 1, 99, 30, 30, 30] * 20
    threads = [threading.Thread(target=hold, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert highest == 100
    assert budget.held == 0


def test_who_asks_for_more_than_is_left_waits() -> None:
    budget = ByteBudget(10)
    entered = threading.Event()

    def hold() -> None:
        with budget.hold(5):
            entered.set()

    waiting = threading.Thread(target=hold)
    with budget.hold(6):
        waiting.start()
        assert not entered.wait(0.1)
    waiting.join()
    assert entered.is_set()
