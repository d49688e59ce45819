"""What pictures cost: requests with one each, all new, and again with their features kept.

    python benchmarks/images.py [NAME ...] [--runs 3] [--profile] [--output FILE] [--tiny]

The shapes of LLaVA-1.5-7B and Qwen2-VL-2B, bfloat16, random weights, no tokenizer: 64 requests of
one picture of random pixels and 64 tokens in, 128 out, greedy, ends of text ignored. The prefix
cache is emptied before every run; the features of pictures are, too, but for those of `repeated`.
Prints one JSON line a model, and exits with 1 where a timed run compiled a program, or a repeated
picture was encoded again. --profile adds one run under JAX's profiler, for the share of its time in
which a kernel ran. --tiny takes the models of tests/fixtures/vision and a few requests.
"""

import argparse
import dataclasses
import functools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_profile
import jax
import llama_8b
import numpy as np
from PIL import Image

from quire import Engine, SamplingParams
from quire.engine.media_inputs import MediaInputs

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "vision"
LLAVA: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}
QWEN: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "hidden_act": "silu",
    "hidden_size": 1536,
    "image_token_id": 151655,
    "intermediate_size": 8960,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2_vl",
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"},
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "video_token_id": 151656,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "in_chans": 3,
        "mlp_ratio": 4,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
    "vocab_size": 151936,
}
COLOURS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model, and what it is asked."""

    config: dict[str, Any]
    preprocessor: dict[str, Any]
    picture: tuple[int, int]
    """Width and height, pixels."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    requests: int = 64
    text_tokens: int = 64
    output_tokens: int = 128
    ids: range = range(1000, 30000)
    """Of which the text is made: none is special."""

    def prompts(self, image_token: int) -> list[dict[str, Any]]:
        """A picture and some text each, the same on every call."""
        rng, pixels = random.Random(0), np.random.default_rng(0)
        shape = (*reversed(self.picture), 3)
        return [
            {
                "prompt_token_ids": [image_token, *rng.choices(self.ids, k=self.text_tokens)],
                "multi_modal_data": {
                    "image": Image.fromarray(pixels.integers(256, size=shape, dtype=np.uint8))
                },
            }
            for _ in range(self.requests)
        ]


WORKLOADS = {
    "llava-1.5-7b": Workload(
        LLAVA,
        {
            **COLOURS,
            "crop_size": {"height": 336, "width": 336},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_processor_type": "CLIPImageProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": 336},
        },
        (1024, 768),
    ),
    "qwen2-vl-2b": Workload(
        QWEN,
        {
            **COLOURS,
            "image_processor_type": "Qwen2VLImageProcessor",
            "max_pixels": 12845056,
            "merge_size": 2,
            "min_pixels": 3136,
            "patch_size": 14,
            "temporal_patch_size": 2,
        },
        (1024, 1024),
        {"mm_processor_kwargs": {"max_pixels": 1003520}},
    ),
}
OPTIONS: dict[str, Any] = {
    "dtype": "bfloat16",
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "max_model_len": 4096,
    "max_num_seqs": 64,
    "gpu_memory_utilization": 0.85,
    "use_tqdm_on_load": False,
}


def tiny(fixture: str) -> Workload:
    """A few requests for a model of the tests."""
    config, preprocessor = (
        json.loads((FIXTURES / fixture / name).read_text())
        for name in ("config.json", "preprocessor_config.json")
    )
    sizes = {"requests": 4, "text_tokens": 8, "output_tokens": 8, "ids": range(8, 90)}
    return Workload(config, preprocessor, (64, 48), {"max_model_len": 128}, **sizes)


def make_folder(workload: Workload) -> Path:
    """A model folder with nothing but what describes the model and its processor."""
    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(workload.config))
    (folder / "preprocessor_config.json").write_text(json.dumps(workload.preprocessor))
    return folder


def make_engine(workload: Workload) -> Engine:
    """An engine that compiles its greedy programs ahead, and others only when they are needed."""
    with llama_8b.only_greedy_ahead():
        return Engine(make_folder(workload), **(OPTIONS | workload.options))


def inputs(engine: Engine) -> MediaInputs:
    """What reads and prepares pictures for an engine."""
    media = engine._running.media
    assert media is not None, "a model that sees"
    return media


def run(engine: Engine, prompts: list[dict[str, Any]], tokens: int, *, keep: bool) -> float:
    """Seconds of one `generate` call with an empty prefix cache; `keep` keeps the features."""
    engine.reset_prefix_cache()
    if not keep:
        with engine._lock:
            engine._running.features.clear()
        inputs(engine).forget()
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    started = time.perf_counter()
    engine.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - started


def timed(engine: Engine, once: Callable[[], float], runs: int) -> tuple[list[float], int]:
    """Seconds of each of `runs` runs, and how many programs they compiled.

    Others go before, until one finds its programs ready.
    """
    compiled = -1
    while compiled != engine.stats().programs_compiled:
        engine.wait_until_ready()
        compiled = engine.stats().programs_compiled
        once()
        engine.wait_until_ready()
    return [once() for _ in range(runs)], engine.stats().programs_compiled - compiled


def busy_share(once: Callable[[], float]) -> float:
    """The share of a run's time in which something ran on the GPU."""
    seconds: list[float] = []
    events = gpu_profile.device_events(lambda: seconds.append(once()))
    span = events[-1][0] + events[-1][1] - events[0][0]
    return (span - gpu_profile.idle(events)) / 1e6 / seconds[0]


def rates(workload: Workload, seconds: list[float]) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "s": [round(s, 4) for s in seconds],
        "median_s": round(median, 4),
        "pictures_per_s": round(workload.requests / median, 2),
        "out_tok_s": round(workload.requests * workload.output_tokens / median, 1),
    }


def measure(engine: Engine, workload: Workload, runs: int, *, profile: bool) -> dict[str, Any]:
    """The figures of one model."""
    images = inputs(engine).spec.kinds["image"]
    prompts = workload.prompts(images.token)
    once = functools.partial(run, engine, prompts, workload.output_tokens)
    seconds, compiled = timed(engine, functools.partial(once, keep=False), runs)
    features = engine._running.features
    queried, hits = features.queried, features.hits
    again, compiled_again = timed(engine, functools.partial(once, keep=True), runs)
    encoded = features.queried - queried - (features.hits - hits)
    figures = {
        "requests": workload.requests,
        "picture": workload.picture,
        "picture_tokens": images.processor.num_tokens(*workload.picture),
        "text_tokens": workload.text_tokens,
        "output_tokens": workload.output_tokens,
        **rates(workload, seconds),
        "repeated": rates(workload, again) | {"encoded": encoded},
        "programs_compiled": compiled + compiled_again,
    }
    if profile and jax.default_backend() == "gpu":
        figures["busy_share"] = round(busy_share(functools.partial(once, keep=False)), 3)
    elif profile:
        figures |= {"busy_share": None, "note": "not profiled: that needs a GPU"}
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = list(WORKLOADS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(names)}")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--output", type=Path, help="file to append the JSON lines to")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.names) - set(names):
        parser.error(f"unknown models {sorted(unknown)}; there are {', '.join(names)}")
    small = {"llava-1.5-7b": tiny("llava"), "qwen2-vl-2b": tiny("qwen2_vl")} if args.tiny else {}
    failed = False
    for name in args.names or names:
        workload = (WORKLOADS | small)[name]
        with make_engine(workload) as engine:
            figures = measure(engine, workload, args.runs, profile=args.profile)
        shown = f"{name}, tiny" if args.tiny else name
        llama_8b.report({"benchmark": "images", "model": shown, **figures}, args.output)
        failed |= figures["programs_compiled"] > 0 or figures["repeated"]["encoded"] > 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
