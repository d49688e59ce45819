"""What XLA makes of the programs: the pool is updated in place, and temporaries stay small."""

import re
from pathlib import Path

import jax
import pytest

from quire.engine.buckets import Auxiliary, Buckets, Variant
from quire.engine.device_state import RunnerConfig, new_state
from quire.engine.lowering import Lowering
from quire.engine.model import find_spec
from quire.engine.options import make_options
from quire.engine.programs import Key

BUCKETS = Buckets(max_num_seqs=4, max_num_batched_tokens=64)
ADAPTED = [
    BUCKETS.decode(4, Variant.GREEDY, adapters=True),
    BUCKETS.mixed(64, Variant.FULL, adapters=True),
]


@pytest.mark.parametrize("key", [*BUCKETS.programs(), *ADAPTED, *Auxiliary], ids=str)
def test_no_program_copies_the_pool(key: Key, model_folder: Path) -> None:
    spec = find_spec(make_options(str(model_folder), enable_lora=True, max_loras=2))
    config = RunnerConfig(
        BUCKETS,
        num_pages=5003,
        page_size=16,
        top_logprobs=5,
        compile_ahead=False,
        adapters=(2, 16),
    )
    state = jax.eval_shape(lambda: new_state(spec, config))
    one_array = state.cache[0][0].size * 4
    compiled = Lowering(spec, config)(key).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    assert memory.temp_size_in_bytes < one_array
    if key not in (Auxiliary.TOP_LOGPROBS, Auxiliary.ALL_LOGPROBS):
        others = [
            Auxiliary.WRITE_TABLES,
            Auxiliary.WRITE_BIAS,
            Auxiliary.WRITE_MASKS,
            Auxiliary.WRITE_ADAPTER,
        ]
        pool = 0 if key in others else 2 * spec.config.num_layers * one_array
        assert memory.alias_size_in_bytes >= pool
    assert not re.search(r"= f32\[5003,16,2,8\]\S* copy\(", text)
