"""The real definitions, their checkpoint maps and files that `transformers` wrote."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from quire.engine.checkpoint import load_params, read_config, save_params
from quire.models import functional, registry
from quire.models.causal import causal_logits
from quire.models.checkpoint_map import CheckpointMap

FOLDER = Path(__file__).parents[2] / "fixtures" / "models"
VARIANTS = sorted(path.name for path in FOLDER.iterdir())
TOLERANCE = 2e-4

Shapes = dict[str, jax.ShapeDtypeStruct]


def definition(folder: Path, max_model_len: int | None = None) -> tuple[Any, Shapes, CheckpointMap]:
    hf_config = read_config(folder)
    architecture = registry.resolve(hf_config)
    config = architecture.config_class.from_hf(hf_config, max_model_len)
    graphdef, shapes, _ = functional.abstract(architecture, config, jnp.float32)
    return graphdef, shapes, architecture.checkpoint_map(config)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_fixture_loads(name: str) -> None:
    _, shapes, cmap = definition(FOLDER / name)
    params = load_params(FOLDER / name, shapes, cmap, progress=False)
    assert {n: (a.shape, a.dtype) for n, a in params.items()} == {
        n: (s.shape, s.dtype) for n, s in shapes.items()
    }


@pytest.mark.parametrize("name", ["llama2", "phi3", "opt"])
def test_the_logits_are_those_of_the_reference(name: str) -> None:
    expected = np.load(FOLDER / name / "expected.npz")
    limit = int(expected["max_model_len"]) or None
    graphdef, shapes, cmap = definition(FOLDER / name, limit)
    params = load_params(FOLDER / name, shapes, cmap, progress=False)
    tokens = jnp.asarray(expected["prompt_0"], jnp.int32)[None]
    logits = jax.jit(lambda p: causal_logits(functional.bind(graphdef, p), tokens))(params)
    assert np.abs(logits[0] - expected["logits_0"]).max() < TOLERANCE


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_the_same_from_a_torch_file(
    tmp_path: Path, form: str, request: pytest.FixtureRequest
) -> None:
    _, shapes, cmap = definition(FOLDER / "opt")
    tensors = load_file(FOLDER / "opt" / "model.safetensors")
    request.getfixturevalue(f"write_{form}")(tmp_path / "pytorch_model.bin", tensors)
    check_equal(tmp_path, shapes, cmap)


def test_the_same_after_saving(tmp_path: Path) -> None:
    _, shapes, cmap = definition(FOLDER / "opt")
    params = load_params(FOLDER / "opt", shapes, cmap, progress=False)
    save_params(tmp_path / "saved", params, FOLDER / "opt")
    check_equal(tmp_path / "saved", *definition(tmp_path / "saved")[1:])


def check_equal(folder: Path, shapes: Shapes, cmap: CheckpointMap) -> None:
    reference = load_params(FOLDER / "opt", shapes, cmap, progress=False)
    for name, array in load_params(folder, shapes, cmap, progress=False).items():
        np.testing.assert_array_equal(array, reference[name], strict=True)
