"""Replicas of a model in one engine: the CPU of another process, split into eight devices."""

import re
from typing import Any

import jax
import numpy as np
import openai
import pytest
from jax.sharding import Mesh

from quire import Engine
from quire.engine import memory
from quire.errors import OptionError
from tests.engine.eight_devices import FLAGS, printed
from tests.engine.several_devices import FIXTURES, MODELS
from tests.engine.several_replicas import TEXT
from tests.live_server import SMALL, live_server
from tests.once import once

BUNDLES = (
    ("text", "media", "whole", "facts"),
    ("adapters", "routing", "waiting", "weights", "meshes", "programs", "streams"),
)
"""What one process runs."""
CASES = [(name, data, tensor) for name, sizes in TEXT.items() for data, tensor in sizes]


class Groups(dict[str, Any]):
    """What `several_replicas` finds, by group."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self.factory = factory

    def __missing__(self, group: str) -> Any:
        [bundle] = [names for names in BUNDLES if group in names]
        self.update(once(self.factory, f"replicas-{bundle[0]}", lambda: self._run(*bundle)))
        return self[group]

    def _run(self, *groups: str) -> dict[str, Any]:
        folder = self.factory.mktemp("replicas")
        return printed("tests.engine.several_replicas", str(folder), *groups)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Groups:
    return Groups(tmp_path_factory)


@pytest.mark.parametrize(("name", "data", "tensor"), CASES)
def test_each_replica_makes_the_tokens_of_the_reference(
    found: Groups, name: str, data: int, tensor: int
) -> None:
    expected = np.load(MODELS / name / "expected.npz")
    greedy = [expected[f"greedy_{i}"][:16].tolist() for i in range(2)]
    case = found["text"][CASES.index((name, data, tensor))]
    assert case["each"] == [greedy] * data
    assert case["routed"] == greedy * 2
    assert all(case["steps"])


@pytest.mark.parametrize(("name", "data", "tensor"), CASES)
def test_replicas_have_devices_of_their_own(
    found: Groups, name: str, data: int, tensor: int
) -> None:
    devices = found["text"][CASES.index((name, data, tensor))]["devices"]
    assert devices == np.arange(data * tensor).reshape(data, tensor).tolist()


@pytest.mark.parametrize("what", ["sampled", "beams", "programs"])
def test_draws_and_beams_are_those_of_one_model(found: Groups, what: str) -> None:
    """And a program that is compiled for each counts once."""
    one, two = found["whole"]
    expected = one["sampled"] * 2 if what == "sampled" else one[what]
    assert two[what] == expected


def test_nothing_is_compiled_once_all_is_ready(found: Groups) -> None:
    for case in found["whole"]:
        assert (case["ready"], case["after"]) == (True, 0)


def test_adapters_are_in_the_slots_of_each(found: Groups) -> None:
    one, *more = found["adapters"]
    [alone] = one["each"]
    assert len({tuple(tokens) for tokens in alone}) == 3
    for case in more:
        assert case["each"] == [alone, alone]


def test_a_removed_adapter_leaves_no_pages_anywhere(found: Groups) -> None:
    for case in found["adapters"]:
        replicas = case["sizes"][0]
        assert case["owned"] == [2] * replicas
        assert case["left"] == [1] * replicas


def test_pictures_are_seen_by_each(found: Groups) -> None:
    expected = np.load(FIXTURES / "vision" / "llava" / "expected.npz")
    greedy = [expected[f"{prompt}/greedy"][:16].tolist() for prompt in ("one", "two")]
    assert found["media"]["each"] == [greedy] * 3
    assert found["media"]["chosen"] == [1, 1]


def test_a_prompt_goes_to_the_replica_that_has_its_beginning(found: Groups) -> None:
    routing = found["routing"]
    assert routing["chosen"] == [1]
    assert routing["hits"] == [0, 32]
    assert routing["warm"] == routing["cold"]


def test_new_prompts_and_too_many_alike_go_to_both(found: Groups) -> None:
    assert found["routing"]["balanced"] == [0, 1]
    assert len(found["routing"]["crowded"]) == 2


def test_what_waits_is_taken_over(found: Groups) -> None:
    """All twelve were sent to the first, and no more than two run at once on either."""
    routing = found["routing"]
    assert routing["taken over"] == routing["one by one"]
    assert set(map(tuple, routing["moved"])) == {(0, 1)}
    assert 2 <= len(routing["moved"]) <= 10
    assert min(routing["steps"]) >= 16


def test_stats_are_sums(found: Groups) -> None:
    assert found["routing"]["stats"] == [0, 0, 0]
    together, each = found["routing"]["pages"]
    assert together == 2 * each


def test_nobody_waits_for_the_device_of_another(found: Groups) -> None:
    waiting = found["waiting"]
    assert waiting["held"]
    assert waiting["tokens"] == waiting["alone"]


def test_requests_that_run_and_that_wait_are_aborted(found: Groups) -> None:
    waiting = found["waiting"]
    assert waiting["before abort"] == [4, 4]
    assert waiting["aborted"] == ["abort", "abort"]
    assert waiting["others"] == ["length"]
    assert waiting["in use"] == 0


def test_an_error_of_one_ends_the_engine(found: Groups) -> None:
    assert "error" not in found["waiting"]
    for error in found["waiting"]["errors"]:
        assert re.search("the device is gone.*Make a new one", error)


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("way", ["host", "first", "all", "cut"])
def test_new_weights_reach_all(found: Groups, tensor: int, way: str) -> None:
    """From the host, or from devices without a way through the host."""
    case = found["weights"][tensor - 1]
    [doubled, other] = case[way]["tokens"]
    assert doubled == other == found["weights"][0]["host"]["tokens"][0]
    assert case["plain"][0] == case["plain"][1] != doubled
    assert not any(case[way]["read"])
    assert all(case[way]["taken"]) == (way == "all")


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("both", [[2, 3], [4, 5]]),
        ("other order", [[0, 2], [1, 3]]),
        ("data alone", [[5], [1]]),
        ("one replica", [[6]]),
    ],
)
def test_a_mesh_that_is_given(found: Groups, name: str, devices: list[list[int]]) -> None:
    [case] = [case for case in found["meshes"] if case["name"] == name]
    assert case["devices"] == devices
    assert case["each"] == found["weights"][0]["plain"][:1] * len(devices)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([4, None], r"data_parallel_size=4, but the mesh has 2 devices along 'data'\. Leave it"),
        ([None, 4], r"tensor_parallel_size=4, but the mesh has 2 devices along 'tensor'"),
        (
            [9, None],
            "data_parallel_size=9 and tensor_parallel_size=1 take 9 devices, but JAX sees 8 cpu",
        ),
        ([3, 4], "data_parallel_size=3 and tensor_parallel_size=4 take 12 devices, but JAX sees 8"),
    ],
)
def test_sizes_that_do_not_fit(found: Groups, sizes: list[int | None], message: str) -> None:
    [case] = [case for case in found["meshes"] if case["name"] == f"error {sizes}"]
    assert re.search(message, case["error"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_parallel_size": 2}, "take 2 devices, but JAX sees 1 cpu devices. Lower one"),
        ({"data_parallel_size": "2"}, "data_parallel_size='2' is a str; it must be int"),
        (
            {"mesh": Mesh(jax.devices()[:1], ("data",)), "data_parallel_size": 2},
            "data_parallel_size=2, but the mesh has 1 devices along 'data'",
        ),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Engine(str(MODELS / "llama3"), skip_tokenizer_init=True, **options)


def test_programs_are_traced_once_for_all(found: Groups) -> None:
    """In memory, or on disk, where another number of replicas finds them, too."""
    traces = found["programs"]["traces"]
    assert set(traces["nowhere"]) == set(traces["new"]) == {1}
    assert set(traces["again"]) == set(traces["fewer"]) == {0}


@pytest.mark.parametrize("name", ["qwen2", "llama3"])
def test_facts_of_a_model_do_not_depend_on_devices(found: Groups, name: str) -> None:
    """Though four devices have copies of its two KV heads."""
    one, *others = found["facts"][name]
    assert "num_kv_heads=2" in one
    assert others == [one, one]


def test_streams_of_async_engines(found: Groups) -> None:
    streams = found["streams"]
    assert streams["streamed"] == streams["plain"]
    assert all(streams["steps"])


def test_an_error_reaches_every_stream(found: Groups) -> None:
    ends = found["streams"]["ends"]
    assert len(ends) == 4
    for end in ends:
        assert re.match("EngineClosedError: .*the device is gone", end)


class Device:
    """A GPU, as far as its memory is concerned."""

    process_index = 0

    def __init__(self, limit: int, in_use: int) -> None:
        self.memory = {"bytes_limit": limit, "bytes_in_use": in_use}

    def memory_stats(self) -> dict[str, int]:
        return self.memory


def test_the_device_with_the_least_memory_decides() -> None:
    devices: Any = [Device(100, 10), Device(100, 30), Device(90, 10)]
    assert memory._least_free(devices) == {"bytes_limit": 100, "bytes_in_use": 30}


def test_a_server_of_two_replicas() -> None:
    flags = (*SMALL, "--data-parallel-size", "2", "--max-num-seqs", "2")
    with (
        live_server(*flags, environment={"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        [model] = client.models.list().data
        asked: dict[str, Any] = {"model": model.id, "temperature": 0, "max_tokens": 8}
        whole = client.completions.create(prompt=["The capital of France is"] * 6, **asked)
        with client.completions.create(
            prompt="The capital of France is", stream=True, **asked
        ) as stream:
            streamed = "".join(piece.choices[0].text for piece in stream)
        assert {choice.text for choice in whole.choices} == {streamed}
        assert "Paris" in streamed
