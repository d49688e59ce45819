"""What is measured, and the bounded queue, over a stand-in for the engine."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quire import EngineClosedError, PromptError, RequestOutput, RequestOutputKind, SamplingParams
from quire.entrypoints.openai.errors import ApiError
from quire.entrypoints.openai.metrics import Histogram
from quire.entrypoints.openai.service import Service

from .conftest import StandIn, make_service, output

DELTA = SamplingParams(max_tokens=8, output_kind=RequestOutputKind.DELTA)
WHOLE = SamplingParams(max_tokens=8, output_kind=RequestOutputKind.FINAL_ONLY)
NAMES = """
num_requests_running num_requests_waiting kv_cache_usage_perc prefix_cache_queries_total
prefix_cache_hits_total num_preemptions_total prompt_tokens_total generation_tokens_total
admission_rejections_total request_success_total cache_config_info request_prompt_tokens_sum
programs_compiled_total
request_generation_tokens_count request_params_n_bucket request_params_max_tokens_bucket
time_to_first_token_seconds_bucket inter_token_latency_seconds_bucket
request_time_per_output_token_seconds_bucket e2e_request_latency_seconds_bucket
request_queue_time_seconds_bucket request_prefill_time_seconds_bucket
request_decode_time_seconds_bucket request_inference_time_seconds_bucket
""".split()


def samples(service: Service) -> dict[str, float]:
    """Values by name, without labels but the reason and the bound."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(service.metrics.text().decode()):
        for sample in family.samples:
            assert sample.labels.pop("model_name") == "m"
            mark = "".join(sample.labels.get(name, "") for name in ("finished_reason", "le"))
            found[sample.name.partition(":")[2] + (f" {mark}" if mark else "")] = sample.value
    return found


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def read(outputs: AsyncGenerator[RequestOutput, None]) -> int:
    return sum([len(one.outputs[0].token_ids) async for one in outputs])


async def ask(engine: StandIn, service: Service, params: SamplingParams, *answers: Any) -> int:
    """The tokens of one request, which the engine answers so."""
    task = asyncio.ensure_future(read(service.generate("p", params, "id")))
    await until(lambda: engine.queues)
    for answer in answers:
        engine.queues[0].put_nowait(answer)
        await asyncio.sleep(0.01)
    return await task


@pytest.mark.parametrize("prefix", ["vllm", "quire"])
def test_names(engine: StandIn, prefix: str) -> None:
    service = make_service(engine, "m", metrics_prefix=prefix)
    text = service.metrics.text().decode()
    for name in NAMES:
        assert f"\n{prefix}:{name}{{" in text, name


def test_gauges_and_counters_are_the_engines(engine: StandIn) -> None:
    service = make_service(engine, "m")
    engine.running = 2
    engine.queues = [asyncio.Queue()] * 3
    found = samples(service)
    assert found["num_requests_running"] == 2
    assert found["num_requests_waiting"] == 1
    assert found["kv_cache_usage_perc"] == 0.2
    assert found["prefix_cache_queries_total"] == 20
    assert found["prefix_cache_hits_total"] == 16
    assert found["num_preemptions_total"] == 1
    assert found["prompt_tokens_total"] == 30
    assert found["generation_tokens_total"] == 12
    assert found["programs_compiled_total"] == 2


def test_a_stream_is_timed(engine: StandIn) -> None:
    service = make_service(engine, "m")
    answers = [output(1), output(2), output(0), output(1, "stop")]
    assert asyncio.run(ask(engine, service, DELTA, *answers)) == 4
    found = samples(service)
    assert found["request_success_total stop"] == 1
    assert found["request_success_total abort"] == 0
    assert found["request_prompt_tokens_sum"] == 3
    assert found["request_generation_tokens_sum"] == 4
    assert found["request_params_n_sum"] == 1
    assert found["request_params_max_tokens_sum"] == 8
    assert found["time_to_first_token_seconds_count"] == 1
    assert found["inter_token_latency_seconds_count"] == 3
    assert found["inter_token_latency_seconds_sum"] > 0.02
    assert found["request_time_per_output_token_seconds_count"] == 1
    assert found["e2e_request_latency_seconds_count"] == 1


def test_a_whole_answer_is_timed(engine: StandIn) -> None:
    service = make_service(engine, "m")
    assert asyncio.run(ask(engine, service, WHOLE, output(5, "length"))) == 5
    found = samples(service)
    assert found["request_success_total length"] == 1
    assert found["inter_token_latency_seconds_count"] == 4
    assert found["time_to_first_token_seconds_count"] == 1


def test_leaving_is_an_abort(engine: StandIn) -> None:
    async def leave(service: Service) -> None:
        outputs = service.generate("p", DELTA, "id")
        task = asyncio.ensure_future(anext(outputs))
        await until(lambda: engine.queues)
        engine.queues[0].put_nowait(output(1))
        await task
        await outputs.aclose()
        task = asyncio.ensure_future(read(service.generate("p", DELTA, "id")))
        await until(lambda: engine.queues)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not engine.queues

    service = make_service(engine, "m", max_waiting=1)
    asyncio.run(leave(service))
    assert samples(service)["request_success_total abort"] == 2
    assert service.num_waiting == 0


@pytest.mark.parametrize(
    ("error", "counted"), [(EngineClosedError("gone"), 1), (PromptError("bad"), 0)]
)
def test_errors_are_counted_if_they_are_the_engines(
    engine: StandIn, error: Exception, counted: int
) -> None:
    service = make_service(engine, "m")
    with pytest.raises(type(error)):
        asyncio.run(ask(engine, service, DELTA, error))
    assert samples(service)["request_success_total error"] == counted


def test_the_queue_is_bounded(engine: StandIn) -> None:
    async def fill(service: Service) -> None:
        tasks = [asyncio.ensure_future(read(service.generate("p", DELTA, "id"))) for _ in range(2)]
        await until(lambda: len(engine.queues) == 2)
        with pytest.raises(
            ApiError, match="2 sequences wait already, and no more than 2"
        ) as caught:
            await anext(service.generate("p", DELTA, "id"))
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
        engine.running = 1  # so that there is room again
        tasks.append(asyncio.ensure_future(read(service.generate("p", DELTA, "id"))))
        await until(lambda: len(engine.queues) == 3)
        with pytest.raises(ApiError):
            await anext(service.generate("p", DELTA, "id"))
        for queue in list(engine.queues):
            queue.put_nowait(output(1, "stop"))
        await asyncio.gather(*tasks)
        engine.running = 0

    service = make_service(engine, "m", max_waiting=2)
    asyncio.run(fill(service))
    assert samples(service)["admission_rejections_total"] == 2
    assert service.num_waiting == 0


def test_prompts_on_their_way_wait(engine: StandIn) -> None:
    """The engine knows nothing of them yet."""

    async def fill(service: Service) -> None:
        engine.queues = []
        outputs = [service.generate("p", DELTA, "id") for _ in range(3)]
        tasks = [asyncio.ensure_future(anext(one)) for one in outputs]
        await until(lambda: any(task.done() for task in tasks))
        assert isinstance(tasks[2].exception(), ApiError)
        for task in tasks[:2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(fill(make_service(engine, "m", max_waiting=2)))


def test_choices_are_bounded(engine: StandIn) -> None:
    service = make_service(engine, max_n=3)
    params = SamplingParams(n=4)
    with pytest.raises(ApiError, match="n=4 is above 3, the most here") as caught:
        asyncio.run(read(service.generate("p", params, "id")))
    assert (caught.value.status, caught.value.param) == (400, "n")


def test_without_a_bound_all_may_wait(engine: StandIn) -> None:
    async def fill(service: Service) -> None:
        tasks = [asyncio.ensure_future(read(service.generate("p", DELTA, "id"))) for _ in range(50)]
        await until(lambda: len(engine.queues) == 50)
        for queue in list(engine.queues):
            queue.put_nowait(output(1, "stop"))
        await asyncio.gather(*tasks)

    asyncio.run(fill(make_service(engine, "m", max_waiting=None)))


def test_histogram() -> None:
    histogram = Histogram((1, 2))
    for value in (0.5, 1, 1.5):
        histogram.observe(value)
    histogram.observe(3, times=2)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 3), ("+Inf", 5)]
    assert histogram.total == 9
