from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from quire.engine.checkpoint.plan import ParamPlan, castable, plan_params
from quire.engine.checkpoint.safetensors_file import open_safetensors
from quire.errors import CheckpointError
from quire.models.checkpoint_map import CheckpointMap, Piece

SHAPES: dict[str, tuple[int, ...]] = {"qkv": (2, 4, 3, 8), "embed": (10, 8)}
PIECES = (
    Piece("q", "qkv", (slice(None), slice(0, 2))),
    Piece("k", "qkv", (slice(None), 2)),
    Piece("v", "qkv", (slice(None), 3)),
    Piece("embed", "embed"),
)
ARRAYS: dict[str, np.ndarray] = {
    "q": np.zeros((12, 8), np.float32),
    "k": np.zeros((6, 8), np.float32),
    "v": np.zeros((6, 8), np.float32),
    "embed": np.zeros((10, 8), np.float32),
}


class Case:
    """A checkpoint file and a model; each test spoils one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.arrays = dict(ARRAYS)
        self.shapes = dict(SHAPES)
        self.map = CheckpointMap(PIECES)
        self.dtype = jnp.float32

    def plan(self) -> list[ParamPlan]:
        path = self.folder / "model.safetensors"
        save_file(self.arrays, path)
        shapes = {n: jax.ShapeDtypeStruct(s, self.dtype) for n, s in self.shapes.items()}
        return plan_params(self.folder, open_safetensors(path), shapes, self.map)

    def remap(self, pieces: Mapping[int, Piece], *more: Piece) -> None:
        changed = [pieces.get(i, piece) for i, piece in enumerate(PIECES)]
        self.map = CheckpointMap((*changed, *more))

    def fails(self, match: str) -> str:
        with pytest.raises(CheckpointError, match=match) as caught:
            self.plan()
        return str(caught.value)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_every_parameter_has_its_pieces(case: Case) -> None:
    plans = case.plan()
    assert [(p.name, p.shape, len(p.fills)) for p in plans] == [
        ("qkv", (2, 4, 3, 8), 3),
        ("embed", (10, 8), 1),
    ]
    assert plans[0].nbytes == 2 * 4 * 3 * 8 * 4
    assert [fill.shape for fill in plans[0].fills] == [(2, 2, 3, 8), (2, 3, 8), (2, 3, 8)]


def test_missing_tensors(case: Case) -> None:
    del case.arrays["k"], case.arrays["embed"]
    case.fails(r"tensors missing from the checkpoint \(2\): embed, k")


def test_unused_tensors(case: Case) -> None:
    case.arrays["lora_a"] = np.zeros(1)
    case.fails(r"tensors the model does not use \(1\): lora_a")


def test_known_extras_are_no_problem(case: Case) -> None:
    case.map = CheckpointMap(PIECES, ignored=(r"rotary\.\d+\.inv_freq",))
    case.arrays["rotary.0.inv_freq"] = np.zeros(1)
    assert len(case.plan()) == 2
    case.arrays["rotary.0.inv_freq.more"] = np.zeros(1)
    case.fails(r"does not use \(1\): rotary\.0\.inv_freq\.more")


def test_old_names(case: Case) -> None:
    case.map = CheckpointMap(PIECES, canonical=lambda name: name.removeprefix("decoder."))
    case.arrays = {f"decoder.{name}": array for name, array in ARRAYS.items()}
    assert len(case.plan()) == 2
    case.arrays["q"] = ARRAYS["q"]
    case.fails(r"two tensors for the same place \(1\): (decoder\.q and q|q and decoder\.q)")


@pytest.mark.parametrize("shape", [(8, 12), (12, 9), (13, 8), (96, 2), ()])
def test_wrong_shapes_say_both(case: Case, shape: tuple[int, ...]) -> None:
    case.arrays["q"] = np.zeros(shape, np.float32)
    assert f"q is {list(shape)}, the model needs [2, 2, 3, 8]" in case.fails(r"wrong shapes \(1\)")


@pytest.mark.parametrize("shape", [(12, 8), (4, 3, 8), (2, 2, 3, 8), (2, 2, 3, 2, 4), (96,)])
def test_regrouped_dimensions_fit(case: Case, shape: tuple[int, ...]) -> None:
    case.arrays["q"] = np.zeros(shape, np.float32)
    assert len(case.plan()) == 2


def test_rows_of_a_fused_tensor(case: Case) -> None:
    case.arrays = {"fused": np.arange(192.0, dtype=np.float32).reshape(24, 8)} | ARRAYS
    del case.arrays["q"], case.arrays["k"], case.arrays["v"]
    rows = (slice(0, 12), slice(12, 18), slice(18, 24))
    pieces = {i: Piece("fused", "qkv", PIECES[i].index, row) for i, row in enumerate(rows)}
    case.remap(pieces)
    qkv = case.plan()[0]
    assert [fill.source[0, 0] for fill in qkv.fills] == [0, 96, 144]
    case.arrays["fused"] = np.zeros((25, 8), np.float32)
    case.fails(r"tensors used only in part \(1\): fused has 25 rows, the model uses 24")
    case.arrays["fused"] = np.zeros((23, 8), np.float32)
    case.fails(r"fused is \[23, 8\], its rows for qkv \[5, 8\], the model needs \[2, 3, 8\]")
    case.arrays["fused"] = np.zeros((), np.float32)
    case.fails(r"fused is \[\]")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_])
def test_integers_are_no_weights(case: Case, dtype: type) -> None:
    case.arrays["q"] = np.zeros((12, 8), dtype)
    name = np.dtype(dtype).name
    case.fails(rf"quantized weights\) \(1\): q is {name}, the model needs float32")


def test_parameters_not_filled_exactly_once(case: Case) -> None:
    case.map = CheckpointMap(PIECES[:2] + PIECES[3:])
    case.fails(r"parameters not filled exactly once \(1\): qkv")
    case.remap({}, Piece("embed", "embed"))
    case.fails(r"parameters not filled exactly once \(1\): embed")
    case.map = CheckpointMap(PIECES)
    case.shapes["norm"] = (8,)
    case.fails(r"parameters not filled exactly once \(1\): norm")


@pytest.mark.parametrize("index", [..., (..., slice(None)), slice(None), (slice(0, 10),), ()])
def test_any_basic_index(case: Case, index: object) -> None:
    case.remap({3: Piece("embed", "embed", index)})
    assert case.plan()[1].fills[0].shape == (10, 8)


def test_a_map_for_another_model(case: Case) -> None:
    del case.shapes["embed"]
    case.fails(r"parameters the model does not have \(1\): embed")


def test_everything_is_said_at_once(case: Case) -> None:
    del case.arrays["k"]
    case.arrays |= {f"extra.{i}": np.zeros(1) for i in range(100)}
    case.arrays["v"] = np.zeros((6, 9), np.float32)
    case.arrays["embed"] = np.zeros((10, 8), np.int8)
    case.shapes["norm"] = (8,)
    text = case.fails(r"does not fit the model")
    assert "missing from the checkpoint (1): k" in text
    assert "does not use (100): extra.0, " in text
    assert "and 92 more" in text
    assert "v is [6, 9], the model needs [2, 3, 8]" in text
    assert "embed is int8" in text
    assert "not filled exactly once (1): norm" in text


def test_castable() -> None:
    floats = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
    assert all(castable(np.dtype(a), np.dtype(b)) for a in floats for b in floats)
    assert castable(np.dtype(np.int32), np.dtype(np.int32))
    for other in (np.int8, np.bool_, ml_dtypes.float8_e4m3fn):
        assert not castable(np.dtype(other), np.dtype(np.float32))
        assert not castable(np.dtype(np.float32), np.dtype(other))
