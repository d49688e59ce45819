"""Puts an engine together from its options."""

import dataclasses
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from ..errors import OptionError
from . import mailbox, processes
from .adapter_slots import AdapterSlots
from .adapters import Adapters
from .buckets import Buckets
from .checkpoint import read_generation_config
from .checkpoint.layout import has_vocabulary
from .core import EngineCore
from .device_state import RunnerConfig
from .executor import Executor
from .feature_pool import FeaturePool
from .grammar import Grammars
from .logprobs import LogprobReader
from .lowering import Lowering, compiler_options, planned
from .media_spec import feature_rows
from .memory import plan_pages, reserve_gpu_memory
from .model import ModelSpec, find_spec, load_weights
from .options import EngineOptions
from .output_processor import OutputProcessor
from .page_pool import PagePool
from .processes import Follower, Leader
from .programs import Programs, ProgramsOfOne
from .prompts import PromptReader
from .replicas import Replicas
from .routing import Router
from .runner import ModelRunner
from .sampling_params import SamplingParams
from .scheduler import Scheduler
from .scheduler_config import SchedulerConfig
from .stats import EngineStats
from .tokenizer import Tokenizer
from .weights import for_replicas

if TYPE_CHECKING:
    from .media_inputs import MediaInputs

_CACHE_GB, _CACHE_GB_ON_CPU = 0.5, 0.0625
"""Room for features of pictures by default, 2^30 bytes."""
TOP_LOGPROBS = 20
"""Likely tokens that a step returns; a request for more reads the whole vocabulary."""


@dataclasses.dataclass(frozen=True)
class Replica:
    """A model on devices of its own, and what serves requests there."""

    runner: ModelRunner
    scheduler: Scheduler
    pool: PagePool
    slots: AdapterSlots | None
    """None without `enable_lora`."""
    features: FeaturePool


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The parts of a running engine."""

    options: EngineOptions
    spec: ModelSpec
    """That of the first replica."""
    tokenizer: Tokenizer | None
    media: "MediaInputs | None"
    """None for a model of text alone."""
    programs: Programs
    replicas: list[Replica]
    outputs: OutputProcessor
    core: EngineCore | Replicas
    """Steps all replicas."""
    follower: Follower | None
    """Hears what to execute, in all of several processes but the first."""
    grammars: Grammars
    adapters: Adapters | None
    """None without `enable_lora`."""
    default_params: SamplingParams
    eos_token_ids: frozenset[int]
    started: float
    """`time.monotonic()` at the start, seconds."""

    def stats(self) -> EngineStats:
        """Counts of requests, tokens, pages and programs, now."""
        schedulers = [replica.scheduler for replica in self.replicas]
        pools = [replica.pool for replica in self.replicas]
        return EngineStats(
            num_running=sum(one.num_running for one in schedulers),
            num_waiting=sum(one.num_waiting for one in schedulers),
            num_pages=sum(pool.num_pages - 1 for pool in pools),
            pages_in_use=sum(pool.num_pages - 1 - pool.num_free for pool in pools),
            prefix_cache_queried_tokens=sum(pool.queried_tokens for pool in pools),
            prefix_cache_hit_tokens=sum(pool.hit_tokens for pool in pools),
            num_preemptions=sum(one.num_preemptions for one in schedulers),
            prompt_tokens=self.outputs.prompt_tokens,
            generation_tokens=self.outputs.generation_tokens,
            num_steps=self.core.num_steps,
            programs_compiled=self.programs.compiled,
            ready=self.programs.ready,
            uptime=time.monotonic() - self.started,
        )

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached prefixes. True where no page is in use."""
        return all([replica.pool.reset_prefix_cache() for replica in self.replicas])

    def close(self) -> None:
        """Aborts what runs, stops compiling and frees the devices."""
        self.core.abort_all()
        if self.media is not None:
            self.media.close()
        self.programs.close()
        if self.follower is not None:
            self.follower.close()
        for replica in self.replicas:
            replica.runner.close()

    @property
    def prompts(self) -> PromptReader:
        """Reads prompts for its model."""
        return PromptReader(self.tokenizer, self.media)


def assemble(options: EngineOptions) -> Assembly:
    """Finds the model, starts compiling, and loads the weights meanwhile."""
    started = time.monotonic()
    processes.join(options.coordinator_address, options.num_processes, options.process_id)
    reserve_gpu_memory(options.gpu_memory_utilization)
    program_cache = _use_compilation_cache(options.compilation_cache_dir)
    spec = find_spec(options)
    processes.check_mesh(spec.mesh, len(spec.meshes))
    config = _runner_config(spec, options)
    programs = _programs(spec, config, program_cache)
    runners = _runners(spec, config, programs)
    try:
        tokenizer = None if options.skip_tokenizer_init else _load_tokenizer(spec, options)
        _load(runners, spec, options)
        follower = _connect(runners[0])
    except BaseException:
        programs.close()
        for runner in runners:
            runner.close()
        raise
    programs.go_on()
    scheduling = _scheduler_config(spec, config, options)
    replicas = [_replica(runner, spec, config, scheduling) for runner in runners]
    adapters = None
    if spec.adapters is not None:
        places = [(one.slots, one.pool) for one in replicas if one.slots is not None]
        adapters = Adapters(spec.adapters, options, lambda: runners[0].executor.params, places)
    readers = [LogprobReader(runner, tokenizer, config.top_logprobs) for runner in runners]
    outputs = OutputProcessor(tokenizer, readers[0])
    cores = [
        EngineCore(one.scheduler, one.runner, reader, outputs, spec.config.vocab_size)
        for one, reader in zip(replicas, readers, strict=True)
    ]
    eos_token_ids = _eos_token_ids(spec, tokenizer)
    generation_config = {}
    if options.generation_config == "auto":
        generation_config = read_generation_config(*spec.source.folders("text"))
    return Assembly(
        options=options,
        spec=spec,
        tokenizer=tokenizer,
        media=_media_inputs(spec, options),
        programs=programs,
        replicas=replicas,
        outputs=outputs,
        core=_joined(cores, replicas),
        follower=follower,
        adapters=adapters,
        grammars=Grammars(tokenizer, spec.config.vocab_size, eos_token_ids),
        default_params=SamplingParams.from_generation_config(generation_config),
        eos_token_ids=eos_token_ids,
        started=started,
    )


def _programs(spec: ModelSpec, config: RunnerConfig, cache: Path | None) -> Programs:
    """Starts to compile what is needed first. `cache` is a folder for traced programs."""
    lowering = Lowering(spec, config, cache)
    return Programs(
        lowering if len(spec.meshes) == 1 else lowering.for_replicas,
        planned(spec, config),
        options=compiler_options,
        first=2,
        ahead=config.compile_ahead,
        workers=max(1, min(16, (os.cpu_count() or 2) - 1)),
    )


def _runners(spec: ModelSpec, config: RunnerConfig, programs: Programs) -> list[ModelRunner]:
    if len(spec.meshes) == 1:
        return [ModelRunner(spec, config, Executor(spec, config, programs))]
    return [
        ModelRunner(one, config, Executor(one, config, ProgramsOfOne(programs, index)))
        for index, one in enumerate(spec.replicas)
    ]


def _load(runners: list[ModelRunner], spec: ModelSpec, options: EngineOptions) -> None:
    """Starts all with the weights, which are read once."""
    params = load_weights(spec, options)
    placed = [params] if len(runners) == 1 else for_replicas(params, spec)
    for runner, own in zip(runners, placed, strict=True):
        runner.executor.start(own)


def _connect(runner: ModelRunner) -> Follower | None:
    """Connects several processes, which all come here with the same weights and programs."""
    if jax.process_count() == 1:
        return None
    if jax.process_index() > 0:
        return Follower()
    runner.executor.leader = Leader()
    return None


def _replica(
    runner: ModelRunner, spec: ModelSpec, config: RunnerConfig, scheduling: SchedulerConfig
) -> Replica:
    pool = PagePool(config.num_pages, config.page_size)
    slots = None if spec.adapters is None else AdapterSlots(spec.adapters.slots)
    features = FeaturePool(config.feature_rows)
    scheduler = Scheduler(scheduling, pool, slots, features)
    return Replica(runner, scheduler, pool, slots, features)


def _joined(cores: list[EngineCore], replicas: list[Replica]) -> EngineCore | Replicas:
    if len(cores) == 1:
        return cores[0]
    router = Router([one.scheduler for one in replicas], [one.pool for one in replicas])
    return Replicas(cores, router)


def _media_inputs(spec: ModelSpec, options: EngineOptions) -> "MediaInputs | None":
    if spec.media is None:
        return None
    from .media_inputs import MediaInputs  # with what fetches, which models of text do without

    return MediaInputs(spec.media, options)


def _use_compilation_cache(folder: str | None) -> Path | None:
    """Turns on JAX's persistent cache, unless the program has set one itself.

    Returns the folder for traced programs, None with `compilation_cache_dir=None`.
    """
    if folder is None:
        return None
    if folder == "auto":
        folder = os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/quire"
    caches = Path(folder).expanduser()
    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore
        jax.config.update("jax_compilation_cache_dir", str(caches / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return caches / "programs"


def _runner_config(spec: ModelSpec, options: EngineOptions) -> RunnerConfig:
    on_cpu = jax.default_backend() == "cpu"
    tokens = options.max_num_batched_tokens or _default_tokens(on_cpu, options.deterministic)
    seqs = options.max_num_seqs or min(64 if on_cpu else 256, tokens)
    if seqs > tokens:
        raise OptionError(
            f"max_num_seqs={seqs} is above max_num_batched_tokens={tokens}, so not all sequences "
            "could take a step together. Raise the second or lower the first."
        )
    config = RunnerConfig(
        buckets=Buckets(
            seqs,
            tokens,
            growth=4 if on_cpu else 2,
            fine=not on_cpu,
            one_program=options.deterministic,
            adapters=options.enable_lora,
        ),
        num_pages=0,
        page_size=options.page_size or spec.page_size,
        top_logprobs=min(TOP_LOGPROBS, spec.config.vocab_size),
        compile_ahead=not options.enforce_eager,
        adapters=(options.max_loras, options.max_lora_rank) if options.enable_lora else None,
        mailbox=not options.disable_custom_all_reduce and mailbox.has_use(spec),
    )
    if spec.media is not None:
        config = dataclasses.replace(
            config,
            feature_rows=_feature_rows(spec, options, on_cpu),
            encodings=spec.media.encodings(spec.config.max_model_len, config.buckets.growth),
            media=spec.media.columns,
        )
    pages = processes.agreed(plan_pages(spec, config, options))
    return dataclasses.replace(config, num_pages=pages)


def _feature_rows(spec: ModelSpec, options: EngineOptions, on_cpu: bool) -> int:
    gigabytes = options.mm_encoder_cache_gb
    if gigabytes is None:
        gigabytes = _CACHE_GB_ON_CPU if on_cpu else _CACHE_GB
    width, itemsize = spec.config.hidden_size, spec.dtype.itemsize
    return feature_rows(width, itemsize, spec.config.max_model_len, gigabytes)


def _default_tokens(on_cpu: bool, deterministic: bool) -> int:
    if deterministic:  # every step takes the time of a full one
        return 64 if on_cpu else 512
    return 1024 if on_cpu else 8192


def _scheduler_config(
    spec: ModelSpec, config: RunnerConfig, options: EngineOptions
) -> SchedulerConfig:
    return SchedulerConfig(
        max_num_seqs=config.buckets.max_num_seqs,
        max_num_batched_tokens=config.buckets.max_num_batched_tokens,
        max_model_len=spec.config.max_model_len,
        enable_prefix_caching=options.enable_prefix_caching,
        policy=options.scheduling_policy,
    )


def _load_tokenizer(spec: ModelSpec, options: EngineOptions) -> Tokenizer:
    from .checkpoint import find_model

    folders = spec.source.folders("text")
    folder = next(filter(has_vocabulary, folders), folders[0])
    if options.tokenizer is not None:
        folder = find_model(
            options.tokenizer,
            revision=options.tokenizer_revision,
            download_dir=options.download_dir,
            weights=False,
        )
    return Tokenizer(folder)


def _eos_token_ids(spec: ModelSpec, tokenizer: Tokenizer | None) -> frozenset[int]:
    """Every token that ends a text: of the generation config, the config and the tokenizer."""
    found: set[int] = set()
    for source in (read_generation_config(*spec.source.folders("text")), spec.hf_config):
        ids = source.get("eos_token_id")
        found.update([ids] if isinstance(ids, int) else ids or ())
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(found)
