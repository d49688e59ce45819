"""The host never holds a model twice: measured in a process of its own."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

TENSORS, ROWS, COLUMNS = 64, 512, 512
MIB = 1 << 20
CHECKPOINT_MIB = TENSORS * ROWS * COLUMNS * 4 / MIB

MEASURE = """
import sys
from pathlib import Path
import jax
from quire.engine.checkpoint import load_params
from quire.models.checkpoint_map import CheckpointMap, Piece

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

dtype, count = sys.argv[2], int(sys.argv[3])
shapes = {f"p{i}": jax.ShapeDtypeStruct((512, 512), dtype) for i in range(count)}
cmap = CheckpointMap(tuple(Piece(f"t{i}", f"p{i}") for i in range(count)))
jax.device_put(1).block_until_ready()
import tqdm.auto
Path("/proc/self/clear_refs").write_text("5")  # the highest use so far starts anew
before = status("VmRSS")
params = load_params(Path(sys.argv[1]), shapes, cmap, progress=False)
assert len(params) == count
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("dtype", "copies"), [("float32", 1), ("bfloat16", 0.5)])
def test_the_peak_is_one_copy_and_what_is_on_the_way(
    tmp_path: Path, run_python: Callable[..., str], dtype: str, copies: float
) -> None:
    array = np.ones((ROWS, COLUMNS), np.float32)
    tensors = {f"t{i}": array + i for i in range(TENSORS)}
    save_file(tensors, tmp_path / "model.safetensors")
    peak_mib = float(run_python(MEASURE, str(tmp_path), dtype, str(TENSORS)))
    assert peak_mib > 0.9 * copies * CHECKPOINT_MIB
    assert peak_mib < (copies + 0.6) * CHECKPOINT_MIB
