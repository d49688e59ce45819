"""Engine options: names, defaults and what each may be. Names follow vLLM's where it has them."""

import dataclasses
import math
from typing import Any, Literal, get_args

from ..errors import OptionError, nearest
from ..multimodal.names import KINDS

LoadFormat = Literal["auto", "dummy"]
GenerationConfig = Literal["auto", "vllm"]
SchedulingPolicy = Literal["fcfs", "priority"]
ImageInputType = Literal["pixel_values", "image_features"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Everything an engine can be told. `make_options` checks and builds it."""

    model: str | None = None
    """Hugging Face id, local folder, or an embedded model: `demo`, which None is, `vision-demo`,
    `audio-demo`."""
    tokenizer: str | None = None
    """Where the tokenizer comes from, if not from the model's folder."""
    skip_tokenizer_init: bool = False
    """No tokenizer: token ids in, token ids out."""
    revision: str | None = None
    """Branch, tag or commit of the model's repository; None is its main one."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of the tokenizer's repository."""
    download_dir: str | None = None
    """Where downloads are kept; None is the Hugging Face cache."""
    load_format: LoadFormat = "auto"
    """`auto` reads Orbax, safetensors or `pytorch_model.bin`; `dummy` makes random weights."""
    dtype: str = "auto"
    """`auto`, `bfloat16`, `float16`, `float32`, or the short names `half` and `float`."""
    hf_overrides: dict[str, Any] | None = None
    """Entries that replace those of `config.json`."""
    generation_config: GenerationConfig = "auto"
    """`auto` takes sampling defaults from generation_config.json, `vllm` ignores that file."""
    chat_template: str | None = None
    """Template text or the path of a file; None is the tokenizer's own."""
    max_model_len: int | None = None
    """Most tokens of one sequence, prompt and output; None is the model's own limit."""
    max_num_seqs: int | None = None
    """Most sequences that run at once. None: 256 on a GPU, 64 on a CPU."""
    max_num_batched_tokens: int | None = None
    """Most tokens of one step. None: 8192 on a GPU, 1024 on a CPU."""
    page_size: int | None = None
    """Tokens of one KV page. None: 64 where the Hopper kernels run, else 16."""
    gpu_memory_utilization: float = 0.92
    """Share of the GPU that weights, temporaries and KV pages may take together."""
    kv_cache_memory_bytes: int | None = None
    """Bytes for KV pages; None: what `gpu_memory_utilization` leaves, on a CPU 256 MiB."""
    enable_prefix_caching: bool = True
    """Keeps the KV pages of prompts, and shares them with later prompts that begin alike."""
    enable_lora: bool = False
    """Makes room for adapters, and compiles programs that apply them."""
    max_loras: int = 1
    """Adapters that can be at work in one step."""
    max_lora_rank: int = 16
    """Highest rank of an adapter: 8, 16, 32, 64, 128, 256 or 512."""
    max_cpu_loras: int | None = None
    """Adapters kept in host memory; None: as many as `max_loras`, and at least 16."""
    limit_mm_per_prompt: dict[str, int] | None = None
    """Most media of one prompt, by kind, as `{"image": 2}`; 16 where it does not say."""
    mm_processor_kwargs: dict[str, Any] | None = None
    """Settings of the model's processors of media, such as `{"max_pixels": 1003520}`."""
    mm_encoder_cache_gb: float | None = None
    """GiB for features of media on the device; None: 0.5 on a GPU, 0.0625 on a CPU."""
    allowed_local_media_path: str = ""
    """A folder whose files messages may name by `file:` URLs; empty: none."""
    allowed_media_domains: list[str] | None = None
    """The only hosts that media are fetched from; None: any that is public."""
    allow_private_media_addresses: bool = False
    """Also fetches media from loopback, private and link-local addresses."""
    image_input_type: ImageInputType = "pixel_values"
    """`image_features`: pictures are given as outputs of the vision tower (`ImageFeatureData`)."""
    image_token_id: int | None = None
    """Only checked against the model's own."""
    image_input_shape: str | None = None
    """Only checked against pictures and features that are given as arrays, as `1,3,336,336`."""
    image_feature_size: int | None = None
    """Only checked against the model's own: features of one picture."""
    scheduling_policy: SchedulingPolicy = "fcfs"
    """`fcfs` serves by arrival, `priority` the lowest priority first."""
    max_logprobs: int = 20
    """Most log-probabilities a token that a request may ask for; -1 (all) is always allowed."""
    seed: int = 0
    """Where the keys of requests without a seed come from."""
    compilation_cache_dir: str | None = "auto"
    """JAX's persistent compilation cache: `auto` is ~/.cache/quire/xla, None is off."""
    tensor_parallel_size: int = 1
    """Devices that share the weights and the KV pool, each with some of the heads."""
    data_parallel_size: int = 1
    """Replicas of the model, each on `tensor_parallel_size` devices of its own."""
    mesh: object | None = None
    """Those devices as a `jax.sharding.Mesh` with the axes `data` and `tensor`, or one of them;
    None: the first of all."""
    coordinator_address: str | None = None
    """Host and port of the first of several processes that share a model; `auto`: from the
    cluster's environment. None: this process alone, or those that `jax.distributed` connected."""
    num_processes: int | None = None
    """With a `coordinator_address`: how many processes there are."""
    process_id: int | None = None
    """With a `coordinator_address`: which of them this one is, from 0."""
    disable_custom_all_reduce: bool = False
    """Leaves sums over GPUs to XLA, where a kernel would make them in each other's memory."""
    deterministic: bool = False
    """The bits of a result depend on its request alone: one program serves every step."""
    enforce_eager: bool = False
    """Compiles programs when first needed rather than all ahead of time."""
    use_tqdm_on_load: bool = True
    """Shows a progress bar while weights load."""


MOST_MEDIA = 16
"""Of a kind in one prompt, unless `limit_mm_per_prompt` says otherwise."""
MOST_ADAPTERS = 256
RANKS = (8, 16, 32, 64, 128, 256, 512)
"""What `max_lora_rank` may be."""
NAMES = tuple(field.name for field in dataclasses.fields(EngineOptions))

ALIASES = {"block_size": "page_size"}

# What vLLM takes and Quire can honour only at one value. None is always harmless.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "task": ("auto", "generate"),
    "runner": ("auto", "generate"),
    "convert": ("auto", "none"),
    "tokenizer_mode": ("auto", "fast"),
    "trust_remote_code": (True, False),
    "pipeline_parallel_size": (1,),
    "quantization": (),
    "kv_cache_dtype": ("auto",),
    "cpu_offload_gb": (0,),
    "swap_space": (0, 4),
    "enable_chunked_prefill": (True,),
    "enable_sleep_mode": (False,),
    "device": ("auto", "cuda", "gpu", "cpu"),
    "compilation_config": (),
    "speculative_config": (),
    "max_seq_len_to_capture": (8192,),
    "disable_log_requests": (True, False),
    "disable_log_stats": (True, False),
    "distributed_executor_backend": ("uni",),
    "hf_token": (),
}

_POSITIVE = (
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_memory_bytes",
    "tensor_parallel_size",
    "data_parallel_size",
)


def make_options(model: str | None = None, /, **given: Any) -> EngineOptions:
    """Checks keywords as a user gave them and returns the options.

    Raises OptionError for an unknown name (with the nearest known one), a wrong type or a value
    out of range, and for an option of other engines that would change the result here.
    """
    if model is not None:
        given["model"] = model
    known: dict[str, Any] = {}
    for name, value in given.items():
        name = ALIASES.get(name, name)
        if name in NAMES:
            known[name] = value
        elif name in HARMLESS:
            _check_harmless(name, value)
        else:
            hint = nearest(name, (*NAMES, *HARMLESS, *ALIASES))
            raise OptionError(f"unknown engine option {name!r}.{hint} Allowed: {', '.join(NAMES)}.")
    options = EngineOptions(**known)
    _check_types(options)
    _check_ranges(options)
    return options


def _check_harmless(name: str, value: Any) -> None:
    allowed = HARMLESS[name]
    if value is not None and value not in allowed:
        values = ", ".join(repr(v) for v in (None, *allowed))
        raise OptionError(
            f"{name}={value!r} is not supported yet. Allowed: {values}. Leave it out."
        )


_TYPES = {
    "object | None": object,
    "str": str,
    "str | None": (str, type(None)),
    "int": int,
    "int | None": (int, type(None)),
    "float": (int, float),
    "bool": bool,
    "float | None": (int, float, type(None)),
    "dict[str, Any] | None": (dict, type(None)),
    "dict[str, int] | None": (dict, type(None)),
    "list[str] | None": (list, tuple, type(None)),
}


def _check_adapters(options: EngineOptions) -> None:
    if not 1 <= options.max_loras <= MOST_ADAPTERS:
        raise OptionError(f"max_loras={options.max_loras} must be from 1 to {MOST_ADAPTERS}.")
    if options.max_lora_rank not in RANKS:
        allowed = ", ".join(map(str, RANKS))
        raise OptionError(
            f"max_lora_rank={options.max_lora_rank} must be one of {allowed}: the rank of the "
            "adapters, or the next above it."
        )
    if options.max_cpu_loras is not None and options.max_cpu_loras < options.max_loras:
        raise OptionError(
            f"max_cpu_loras={options.max_cpu_loras} must be at least max_loras="
            f"{options.max_loras}. Leave it out for the default."
        )


def _check_media(options: EngineOptions) -> None:
    for kind, most in (options.limit_mm_per_prompt or {}).items():
        if kind not in KINDS or isinstance(most, bool) or not isinstance(most, int) or most < 0:
            raise OptionError(
                f"limit_mm_per_prompt has {kind!r}: {most!r}; it maps {', '.join(KINDS)} to the "
                "most of a prompt, from 0."
            )
    gigabytes = options.mm_encoder_cache_gb
    if gigabytes is not None and not 0 < gigabytes < 1024:
        raise OptionError(
            f"mm_encoder_cache_gb={gigabytes} must be above 0 and below 1024. Leave it out for the "
            "default."
        )


def _check_types(options: EngineOptions) -> None:
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        choices = get_args(field.type)
        if choices and all(isinstance(choice, str) for choice in choices):
            if value not in choices:
                allowed = ", ".join(map(repr, choices))
                raise OptionError(f"{field.name}={value!r} is not known. Allowed: {allowed}.")
            continue
        expected = _TYPES[_type_name(field.type)]
        is_bool = isinstance(value, bool)
        if not isinstance(value, expected) or (is_bool and expected is not bool):
            raise OptionError(
                f"{field.name}={value!r} is a {type(value).__name__}; it must be "
                f"{_type_name(field.type)}."
            )


def _type_name(annotation: Any) -> str:
    return (
        annotation.__name__
        if isinstance(annotation, type)
        else str(annotation).replace("typing.", "")
    )


def _check_ranges(options: EngineOptions) -> None:
    for name in _POSITIVE:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise OptionError(f"{name}={value} must be at least 1. Leave it out for the default.")
    utilization = options.gpu_memory_utilization
    if math.isnan(utilization) or not 0 < utilization <= 1:
        raise OptionError(f"gpu_memory_utilization={utilization} must be above 0 and at most 1.")
    _check_adapters(options)
    _check_media(options)
    if options.page_size not in (None, 8, 16, 32, 64, 128):
        raise OptionError(f"page_size={options.page_size} must be one of 8, 16, 32, 64, 128.")
    if options.max_logprobs < -1:
        raise OptionError(f"max_logprobs={options.max_logprobs} must be -1 or more.")
    if not -(2**63) <= options.seed < 2**63:
        raise OptionError(f"seed={options.seed} must fit in 64 bits.")
