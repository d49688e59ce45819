"""Adapters of models that see or hear, against the same models with them in their weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quire import Engine, LoRARequest, SamplingParams
from quire.engine.adapter_files import read_adapter_folder
from quire.lora.adapter import merged
from quire.lora.mapping import BaseModel
from tests.engine.vision_models import FIXTURES, PROMPTS, Cases, SoundCases
from tests.lora_folders import save_adapter

HALF = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
TILED = ("text", "one", "video")
"""Prompts of LLaVA-OneVision."""


class TileCases:
    """LLaVA-OneVision's, as `Cases`."""

    def __init__(self) -> None:
        self.folder = FIXTURES / "vision" / "llava_onevision"
        self.options: dict[str, Any] = {"dtype": "float32", "max_model_len": 512}
        with np.load(self.folder / "expected.npz") as file:
            self._file = dict(file)

    def _media(self, names: list[str]) -> dict[str, Any]:
        file = self._file
        pictures = (f"{name}/picture" for name in names)
        videos = (f"{name}/frames" for name in names)
        return {
            "image": [Image.fromarray(file[name]) for name in pictures if name in file],
            "video": [file[name] for name in videos if name in file],
        }

    def prompts(self) -> list[dict[str, Any]]:
        return [
            {
                "prompt_token_ids": self._file[f"{name}/prompt"].tolist(),
                "multi_modal_data": self._media(self._file[f"{name}/media"].tolist()),
            }
            for name in TILED
        ]

    def greedy(self) -> list[list[int]]:
        return [self._file[f"{name}/greedy"].tolist() for name in TILED]


CASES = {name: Cases(name) for name in PROMPTS} | {
    "llava_onevision": TileCases(),
    "qwen2_audio": SoundCases(),
    "ultravox": SoundCases("ultravox"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mixed_batch_is_what_merged_weights_give(name: str, tmp_path: Path) -> None:
    """Adapters change the text model of prompts with media, and no tower."""
    cases = CASES[name]
    options = {**cases.options, "enable_lora": True, "max_lora_rank": 8, "enforce_eager": True}
    plain = cases.prompts()
    with Engine(cases.folder, **options) as engine:
        spec = engine._running.spec.adapters
        assert spec is not None
        request = LoRARequest("seen", 1, str(adapter_folder(tmp_path, spec.base)))
        each = [None] * len(plain) + [request] * len(plain)
        outputs = engine.generate(plain * 2, HALF, use_tqdm=False, lora_request=each)
        found = [output.outputs[0].token_ids for output in outputs]
        adapter = read_adapter_folder(request, spec.base, max_rank=8)
        params = {path: np.asarray(array) for path, array in engine.params.items()}
        engine.update_params(merged(params, adapter))
        changed = engine.generate(plain, HALF, use_tqdm=False)
    expected = [tokens[:32] for tokens in cases.greedy()]
    assert found == expected + [output.outputs[0].token_ids for output in changed]
    assert found[len(plain) :] != found[: len(plain)]


def adapter_folder(folder: Path, base: BaseModel) -> Path:
    """Of rank 4, for every linear module that an adapter may change."""
    random = np.random.default_rng(0)
    linear = [module for module in base.modules.values() if module.kind == "linear"]
    arrays: dict[str, np.ndarray] = {}
    for module in linear:
        for side, shape in (("A", (4, module.in_size)), ("B", (module.out_size, 4))):
            array = 0.2 * random.standard_normal(shape, np.float32)
            arrays[f"base_model.model.{module.name}.lora_{side}.weight"] = array
    return save_adapter(folder, arrays, 4, [module.name for module in linear])
