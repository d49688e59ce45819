"""Run in a process whose CPU is eight devices: prints what engines of several replicas do.

    python -m tests.engine.several_replicas FOLDER

FOLDER is for what it writes. Prints one JSON dict: for each group of cases what was found.
"""

import asyncio
import contextlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from quire import (
    AsyncEngine,
    BeamSearchParams,
    Engine,
    EngineClosedError,
    LoRARequest,
    OptionError,
    SamplingParams,
    model_info,
)
from quire.engine import lowering
from quire.engine.replicas import Replicas
from quire.engine.request import Request
from quire.engine.sampling_params import RequestOutputKind
from tests.engine.several_devices import FIXTURES, GREEDY, MODELS, OPTIONS, SAMPLED
from tests.engine.test_adapters import make_adapter
from tests.engine.vision_models import Cases

Found = dict[str, Any]
TEXT = {"llama3": ((2, 1), (2, 2)), "qwen2": ((2, 2),), "opt": ((2, 1),)}
"""Models, and replicas and devices of each."""
PREFIX = [5 + n % 50 for n in range(40)]
"""Two full pages and a half."""
LONG = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
ENDLESS = SamplingParams(
    temperature=0, max_tokens=80, ignore_eos=True, output_kind=RequestOutputKind.DELTA
)


def engine(folder: Path, data: int, tensor: int = 1, **options: Any) -> Engine:
    sizes = {"data_parallel_size": data, "tensor_parallel_size": tensor}
    return Engine(folder, **(OPTIONS | sizes | options))


def ids(outputs: list[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def tokens(made: Engine, prompts: Any, params: Any = GREEDY, **options: Any) -> list[list[int]]:
    return ids(made.generate(prompts, params, use_tqdm=False, **options))


def replicas(made: Engine) -> Replicas:
    core = made._running.core
    assert isinstance(core, Replicas)
    return core


@contextlib.contextmanager
def sent_to(made: Engine, index: int) -> Iterator[None]:
    """Requests of the block go to one replica, and none is taken over."""
    router = replicas(made)._router
    with (
        mock.patch.object(router, "choose", return_value=index),
        mock.patch.object(router, "takeovers", return_value=()),
    ):
        yield


@contextlib.contextmanager
def watched(made: Engine) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """Where requests of the block are sent, and from where to where they are moved."""
    router = replicas(made)._router
    choose, takeovers = router.choose, router.takeovers
    chosen: list[int] = []
    moved: list[tuple[int, int]] = []

    def choosing(request: Request) -> int:
        chosen.append(choose(request))
        return chosen[-1]

    def taking() -> Iterator[tuple[Request, int, int]]:
        for request, giver, taker in takeovers():
            moved.append((giver, taker))
            yield request, giver, taker

    with (
        mock.patch.object(router, "choose", choosing),
        mock.patch.object(router, "takeovers", taking),
    ):
        yield chosen, moved


def on_each(made: Engine, ask: Callable[[], Any]) -> list[Any]:
    """What each replica answers."""
    if not isinstance(made._running.core, Replicas):
        return [ask()]
    answers = []
    for index in range(len(made._running.replicas)):
        with sent_to(made, index):
            answers.append(ask())
    return answers


def steps(made: Engine) -> list[int]:
    core = made._running.core
    return [core.num_steps for core in core._cores] if isinstance(core, Replicas) else []


def devices(made: Engine) -> list[list[int]]:
    """Of each replica, by its weights, and by its pool, which are the same."""
    found = []
    for replica in made._running.replicas:
        executor = replica.runner.executor
        arrays = jax.tree.leaves((executor.state.cache, executor.params))
        [one] = {tuple(d.id for d in array.sharding._device_assignment) for array in arrays}
        found.append(list(one))
    return found


def text(folder: Path) -> list[Found]:
    """Both prompts of each fixture, on each replica, and as they are routed."""
    cases = []
    for name, sizes in TEXT.items():
        expected = np.load(MODELS / name / "expected.npz")
        prompts = [expected[f"prompt_{i}"].tolist() for i in range(2)]
        limit = int(expected["max_model_len"]) or None
        for data, tensor in sizes:
            with engine(MODELS / name, data, tensor, max_model_len=limit) as made:
                each = on_each(made, lambda made=made, prompts=prompts: tokens(made, prompts))
                before = steps(made)
                routed = tokens(made, prompts * 2)
                case = {"name": name, "sizes": [data, tensor], "each": each, "routed": routed}
                case["devices"] = devices(made)
                case["steps"] = [n - m for n, m in zip(steps(made), before, strict=True)]
                cases.append(case)
    return cases


def adapters(folder: Path) -> list[Found]:
    """A prompt without an adapter and with each of two, and one of them removed."""
    request = make_adapter(folder / "adapters", "llama3", 8)
    fixture = next(
        path
        for path in sorted((FIXTURES / "lora").iterdir())
        if np.load(path / "expected.npz")["model"] == "llama3"
    )
    asked = [None, request, LoRARequest("fixture", 77, str(fixture))]
    options = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8, "max_num_seqs": 4}
    cases = []
    for data, tensor in ((1, 1), (2, 1), (2, 2)):
        with engine(MODELS / "llama3", data, tensor, **options) as made:
            each = on_each(
                made,
                lambda made=made: tokens(made, [PREFIX] * 3, lora_request=asked),
            )
            pools = [replica.pool for replica in made._running.replicas]
            owned = [len(pool._owned) for pool in pools]
            made.remove_lora(request.id)
            left = [len(pool._owned) for pool in pools]
            case = {"sizes": [data, tensor], "each": each, "owned": owned, "left": left}
            cases.append(case)
    return cases


def media(folder: Path) -> Found:
    """A model that sees: where the pages that show its pictures are, and where not."""
    cases = Cases("llava")
    prompts = [cases.prompt(name) for name in ("one", "two")]
    options = {**cases.options, "max_num_batched_tokens": 64}
    with engine(cases.folder, 2, 2, **options) as made:
        with sent_to(made, 1):
            first = tokens(made, prompts)
        with watched(made) as (chosen, _):
            again = tokens(made, prompts)
        with sent_to(made, 0):
            other = tokens(made, prompts)
    return {"each": [first, again, other], "chosen": chosen}


def routing(folder: Path) -> Found:
    """What goes where, and what is taken over."""
    found: Found = {}
    with engine(MODELS / "llama3", 2) as made:
        with sent_to(made, 1):
            found["cold"] = tokens(made, [PREFIX], LONG)
        made.reset_prefix_cache()
        with sent_to(made, 1):
            tokens(made, [PREFIX], LONG)
        hits = [replica.pool.hit_tokens for replica in made._running.replicas]
        with watched(made) as (chosen, _):
            found["warm"] = tokens(made, [PREFIX], LONG)
        found["chosen"] = chosen
        found["hits"] = [
            replica.pool.hit_tokens - before
            for replica, before in zip(made._running.replicas, hits, strict=True)
        ]
        with watched(made) as (chosen, _):
            stream = iter(made.stream([PREFIX[::-1], PREFIX[5:]], ENDLESS))
            next(stream)
            found["balanced"] = list(chosen)
            stream.close()  # type: ignore[attr-defined]
        with watched(made) as (chosen, _):
            tokens(made, [PREFIX] * 8, LONG)
        found["crowded"] = sorted(Counter(chosen).values())
        before = steps(made)
        with watched(made) as (chosen, moved):
            router = replicas(made)._router
            with mock.patch.object(router, "choose", return_value=0):
                found["taken over"] = tokens(made, [[n, 3, 9] for n in range(1, 13)])
        found["moved"] = moved
        found["steps"] = [n - m for n, m in zip(steps(made), before, strict=True)]
        stats = made.stats()
        found["stats"] = [stats.num_running, stats.num_waiting, stats.pages_in_use]
        found["pages"] = [stats.num_pages, made._running.replicas[0].pool.num_pages - 1]
        for replica in made._running.replicas:
            replica.scheduler.check_integrity()
        with sent_to(made, 1):
            found["one by one"] = tokens(made, [[n, 3, 9] for n in range(1, 13)])
    return found


class _Held:
    """Sampled tokens that stay on their device until they are let go."""

    def __init__(self, tokens: jax.Array, released: threading.Event) -> None:
        self._tokens = tokens
        self._released = released

    def is_ready(self) -> bool:
        return self._released.is_set()

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        assert self._released.is_set(), "somebody waits for the device that is held"
        return np.asarray(self._tokens)


def waiting(folder: Path) -> Found:
    """A replica whose device is held, beside one that goes on; aborts; an error."""
    found: Found = {}
    with engine(MODELS / "llama3", 2) as made:
        runner, released = made._running.replicas[0].runner, threading.Event()
        run = runner.run

        def held(*args: Any, **kwargs: Any) -> Any:
            output = run(*args, **kwargs)
            object.__setattr__(output, "tokens", _Held(output.tokens, released))
            return output

        results: dict[int, list[list[int]]] = {}

        def ask(index: int) -> None:
            results[index] = tokens(made, [PREFIX[: 3 + index]])

        with mock.patch.object(runner, "run", held):
            router = replicas(made)._router
            first = threading.Thread(target=ask, args=(0,))
            with mock.patch.object(router, "choose", return_value=0):
                first.start()
                while not replicas(made)._cores[0]._due:
                    threading.Event().wait(0.001)
            with mock.patch.object(router, "choose", return_value=1):
                ask(1)
            found["held"] = first.is_alive()
            released.set()
            first.join(60)
        found["tokens"] = [results[0], results[1]]
        found["alone"] = [tokens(made, [PREFIX[: 3 + index]]) for index in range(2)]

    with engine(MODELS / "llama3", 2) as made:
        stream = made.stream([[n, 2, 3] for n in range(1, 9)], ENDLESS)
        ended: dict[str, str | None] = {}
        next(stream)
        found["before abort"] = [made.stats().num_running, made.stats().num_waiting]
        ids_running = sorted(
            {s.request.id for r in made._running.replicas for s in r.scheduler._running}
        )
        ids_waiting = sorted(
            {s.request.id for r in made._running.replicas for s in r.scheduler._waiting}
        )
        made.abort([ids_running[0], ids_waiting[0], "unknown"])
        for output in stream:
            if output.finished:
                ended[output.request_id] = output.outputs[0].finish_reason
        found["aborted"] = [ended.pop(ids_running[0]), ended.pop(ids_waiting[0])]
        found["others"] = sorted(set(ended.values()), key=str)
        found["in use"] = made.stats().pages_in_use
        runner = made._running.replicas[1].runner
        with (
            mock.patch.object(runner, "run", side_effect=RuntimeError("the device is gone")),
            contextlib.suppress(RuntimeError),
        ):
            tokens(made, [[1], [2]])
            found["error"] = "none"
        found["errors"] = []
        for _ in range(2):
            try:
                tokens(made, [[1]])
            except EngineClosedError as error:
                found["errors"].append(str(error))
    return found


def weights(folder: Path) -> list[Found]:
    """New weights: from the host, as they lie on the first replica, and on all devices."""
    devices = np.array(jax.devices())
    found = []
    for tensor in (1, 2):
        grid = devices[: 2 * tensor].reshape(2, tensor)
        mesh = Mesh(grid, ("data", "tensor"))
        with engine(MODELS / "llama3", 2, tensor) as made:
            specs = made._running.spec.specs
            plain = on_each(made, lambda made=made: tokens(made, [PREFIX]))
            ways: dict[str, Callable[[str, np.ndarray], Any]] = {
                "host": lambda _, array: array,
                "first": lambda path, array, own=dict(made.params): jax.device_put(
                    array, own[path].sharding
                ),
                "all": lambda path, array, specs=specs, mesh=mesh: jax.device_put(
                    array, NamedSharding(mesh, specs[path])
                ),
                "cut": lambda _, array, mesh=mesh: jax.device_put(
                    array, NamedSharding(mesh, _cut(array, mesh))
                ),
            }
            old = {path: np.asarray(array) for path, array in made.params.items()}
            case: Found = {"plain": plain}
            for name, place in ways.items():
                given = {path: place(path, 2 * array) for path, array in old.items()}
                made.update_params(given)
                one = {"tokens": on_each(made, lambda made=made: tokens(made, [PREFIX]))}
                on_devices = [array for array in given.values() if isinstance(array, jax.Array)]
                one["read"] = [array._npy_value is not None for array in on_devices]  # pyright: ignore
                one["taken"] = [_is_taken(made, path, array) for path, array in given.items()]
                case[name] = one
                made.update_params(old)
            found.append(case)
    return found


def _cut(array: np.ndarray, mesh: Mesh) -> PartitionSpec:
    """Along the first axis where that can be, as no engine has it."""
    return PartitionSpec(("data", "tensor") if len(array) % mesh.size == 0 else None)


def _is_taken(made: Engine, path: str, given: Any) -> bool:
    """Whether each replica has its own part of an array that lies on all devices."""
    if not isinstance(given, jax.Array):
        return False
    there = {shard.device: shard.data.unsafe_buffer_pointer() for shard in given.addressable_shards}
    return all(
        there.get(shard.device) == shard.data.unsafe_buffer_pointer()
        for replica in made._running.replicas
        for shard in replica.runner.executor.params[path].addressable_shards
    )


def meshes(folder: Path) -> list[Found]:
    """Meshes that are given."""
    all_devices = np.array(jax.devices())
    given = {
        "both": Mesh(all_devices[2:6].reshape(2, 2), ("data", "tensor")),
        "other order": jax.make_mesh((2, 1, 2), ("tensor", "x", "data")),
        "data alone": Mesh(all_devices[[5, 1]], ("data",)),
        "one replica": Mesh(all_devices[[6]], ("data",)),
    }
    found = []
    for name, mesh in given.items():
        with engine(MODELS / "llama3", 1, mesh=mesh) as made:
            each = on_each(made, lambda made=made: tokens(made, [PREFIX]))
            found.append({"name": name, "each": each, "devices": devices(made)})
    for options in (
        {"mesh": given["both"], "data_parallel_size": 4},
        {"mesh": given["both"], "tensor_parallel_size": 4},
        {"data_parallel_size": 9},
        {"data_parallel_size": 3, "tensor_parallel_size": 4},
    ):
        try:
            Engine(MODELS / "llama3", skip_tokenizer_init=True, **options)
        except OptionError as error:
            sizes = [options.get("data_parallel_size"), options.get("tensor_parallel_size")]
            found.append({"name": f"error {sizes}", "error": str(error)})
    return found


def programs(folder: Path) -> Found:
    """How often programs are traced, with and without a folder for them, and when compiled."""
    found: Found = {"traces": {}}
    over = lowering.over
    for name, data, tensor, cache in (
        ("nowhere", 2, 1, None),
        ("new", 2, 2, str(folder / "cache")),
        ("again", 2, 2, str(folder / "cache")),
        ("fewer", 1, 2, str(folder / "cache")),
    ):
        counts: Counter[int] = Counter()

        def counting(mesh: Any, function: Any, *rest: Any, counts: Counter[int] = counts) -> Any:
            serial = len(counts)
            counts[serial] = 0

            def counted(*args: Any) -> Any:
                counts[serial] += 1
                return function(*args)

            return over(mesh, counted, *rest)

        with (
            mock.patch.object(lowering, "over", counting),
            engine(MODELS / "llama3", data, tensor, compilation_cache_dir=cache) as made,
        ):
            tokens(made, [PREFIX])
            made.wait_until_ready(300)
            found["traces"][name] = sorted(counts.values())
            found[f"compiled {name}"] = made.stats().programs_compiled
    return found


def whole(folder: Path) -> list[Found]:
    """All programs compiled at the start, which are few where one serves every step."""
    cases = []
    for data in (1, 2):
        with engine(MODELS / "llama3", data, deterministic=True, enforce_eager=False) as made:
            ready = made.wait_until_ready(300) and made.ready
            before = made.stats().programs_compiled
            sampled = on_each(made, lambda made=made: tokens(made, [PREFIX, [1, 2]], SAMPLED))
            beams = made.beam_search(
                [{"prompt_token_ids": PREFIX}, {"prompt_token_ids": [1, 2]}],
                BeamSearchParams(beam_width=3, max_tokens=6),
            )
            cases.append(
                {
                    "ready": ready,
                    "programs": before,
                    "after": made.stats().programs_compiled - before,
                    "sampled": sampled,
                    "beams": [
                        [list(beam.token_ids) for beam in output.outputs] for output in beams
                    ],
                }
            )
    return cases


def facts(folder: Path) -> Found:
    """Of models, however they are shared out."""
    found: Found = {}
    for name in ("qwen2", "llama3"):
        infos = [
            model_info(str(MODELS / name), tensor_parallel_size=tensor, data_parallel_size=data)
            for data, tensor in ((1, 1), (1, 4), (2, 4))
        ]
        found[name] = [str(info) for info in infos]
    return found


def streams(folder: Path) -> Found:
    """Through `AsyncEngine`: many at once, one that is left, and an error that reaches all."""
    found: Found = {}

    async def collect(made: AsyncEngine, prompt: list[int], params: SamplingParams) -> list[int]:
        got: list[int] = []
        async for output in made.generate({"prompt_token_ids": prompt}, params):
            got += output.outputs[0].token_ids
        return got

    async def main() -> None:
        prompts = [[n, 5, 9] for n in range(1, 11)]
        async with AsyncEngine(MODELS / "llama3", data_parallel_size=2, **OPTIONS) as made:
            short = ENDLESS.clone()
            short.max_tokens = 12
            found["streamed"] = await asyncio.gather(*(collect(made, p, short) for p in prompts))
            found["steps"] = steps(made._engine)
            left = made.generate({"prompt_token_ids": [1, 2]}, ENDLESS)
            await anext(left)
            await left.aclose()
            while made.stats().num_running:
                await asyncio.sleep(0.001)
            plain = GREEDY.clone()
            plain.max_tokens = 12
            found["plain"] = await asyncio.to_thread(tokens, made._engine, prompts, plain)
            endless = [made.generate({"prompt_token_ids": p}, ENDLESS) for p in prompts[:4]]
            for one in endless:
                await anext(one)
            runner = made._engine._running.replicas[0].runner
            gone = RuntimeError("the device is gone")
            with mock.patch.object(runner, "run", side_effect=gone):
                ends = await asyncio.gather(*map(_rest, endless), return_exceptions=True)
            found["ends"] = [f"{type(end).__name__}: {end}" for end in ends]

    async def _rest(outputs: Any) -> None:
        async for _ in outputs:
            pass

    asyncio.run(main())
    return found


GROUPS: dict[str, Callable[[Path], Any]] = {
    f.__name__: f
    for f in (
        text,
        adapters,
        media,
        routing,
        waiting,
        weights,
        meshes,
        programs,
        whole,
        facts,
        streams,
    )
}

if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    print(json.dumps({name: GROUPS[name](Path(folder)) for name in names or GROUPS}))
