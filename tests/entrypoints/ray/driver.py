"""Run as the driver of a Ray of its own: prints what data sets and applications give.

    python -m tests.entrypoints.ray.driver FOLDER OPTIONS

FOLDER has `rows.parquet`, and is for what it writes; OPTIONS are those of engines for it. Prints
one JSON dict: what was found, by the names of the functions in `PARTS`, run in that order.
"""

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import openai
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import serve
from tests.live_server import free_port

import quire.ray

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "clusters.md").read_text()
DATA_PROGRAM, SERVE_PROGRAM, CLIENT_PROGRAM = re.findall(
    r"^```python ray\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL
)
(CONFIG,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
(COMMAND,) = re.findall(r"^(serve run .*)$", PAGE, re.MULTILINE)
PARIS: dict[str, Any] = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 3}
STORY: dict[str, Any] = {
    **{"prompt": "Once upon a time", "max_tokens": 60, "stream": True},
    "extra_body": {"ignore_eos": True},
}
WITHIN = 60.0
Found = dict[str, Any]


def data_set(folder: Path, address: str) -> Found:
    """The rows of the file, answered by two engines, and by whom; who was closed."""

    class Noted(quire.ray.Predictor):
        async def __call__(self, batch: Any) -> pa.Table:
            table = await super().__call__(batch)
            return table.append_column("process", pa.array([os.getpid()] * len(table)))

        def close(self) -> None:
            super().close()
            (folder / f"closed-{os.getpid()}").touch()

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    rows = pq.read_table(folder / "rows.parquet")
    answers = ray.data.from_arrow([rows[i : i + 10] for i in range(0, len(rows), 10)]).map_batches(
        Noted,
        fn_constructor_kwargs={"model": "demo", **json.loads(sys.argv[2])},
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_size=8,
        batch_format="pyarrow",
    )
    blocks: list[Any] = ray.get(answers.to_arrow_refs())  # pyright: ignore
    table = pa.concat_tables(blocks)
    pq.write_table(table.drop_columns("process"), folder / "answers.parquet")
    processes = set(table["process"].to_pylist())
    _wait_for(lambda: len(list(folder.glob("closed-*"))) >= len(processes))
    return {
        "folder": str(folder),
        "processes": sorted(processes),
        "closed": sorted(int(path.name.split("-")[1]) for path in folder.glob("closed-*")),
    }


def programs(folder: Path, address: str) -> Found:
    """What the example and the page's program print."""
    source = folder / "few.jsonl"
    source.write_text('{"prompt": "The capital of France is"}\n{"prompt": ""}\n')
    return {
        "example": _example("ray_batch.py", str(source), str(folder / "few")),
        "page": _printed(lambda: exec(DATA_PROGRAM, {})),
    }


def answered(folder: Path, address: str) -> Found:
    """What an application says to one request of each kind."""
    told = _example("ray_serve.py", "--port", address.rpartition(":")[2])
    with _client(address) as client:
        stream = client.completions.create(model="demo", **STORY)
        arrived = [time.monotonic() for _ in stream]
        whole = client.completions.with_raw_response.create(model="demo", **PARIS)
        unknown = httpx.post(f"{address}/v1/completions", json={"model": "x", "prompt": "x"})
        return {
            "example": told,
            "models": [one.id for one in client.models.list()],
            "text": whole.parse().choices[0].text,
            "request id": [whole.headers["x-request-id"], whole.parse().id],
            "arrived": arrived,
            "unknown": [unknown.status_code, unknown.json()["error"]["message"]],
            "health": httpx.get(f"{address}/health").status_code,
        }


def replaced(folder: Path, address: str) -> Found:
    """The page's application takes the place of the example's while three clients stream."""
    before, ended, failed, stop = _replicas(), [], [], threading.Event()

    def stream() -> None:
        with _client(address) as client:
            while not stop.is_set():
                try:
                    *_, last = client.completions.create(model="demo", **STORY)
                    ended.append(last.choices[0].finish_reason)
                except Exception as error:
                    failed.append(repr(error))

    threads = [threading.Thread(target=stream) for _ in range(3)]
    for thread in threads:
        thread.start()
    _wait_for(lambda: len(ended) >= 3)
    exec(SERVE_PROGRAM, {})
    at_the_end = len(ended)
    _wait_for(lambda: len(ended) >= at_the_end + 3)
    stop.set()
    for thread in threads:
        thread.join()
    program = CLIENT_PROGRAM.replace("http://localhost:8000", address)
    return {
        "replicas": [before, _replicas()],
        "ended": ended,
        "failed": failed,
        "page": _printed(lambda: exec(program, {})),
        "models": [one["id"] for one in httpx.get(f"{address}/v1/models").json()["data"]],
    }


def died(folder: Path, address: str) -> Found:
    """An engine dies in the middle of a request; what clients are told until another answers."""
    before = _replicas()

    def kill(actor: object) -> None:
        import gc

        from quire import AsyncEngine

        def fail(*_: object, **__: object) -> Any:
            raise RuntimeError("the device is gone")

        gc.unfreeze()  # what is frozen is not found
        (engine,) = (one for one in gc.get_objects() if type(one) is AsyncEngine)
        for replica in engine._engine._running.replicas:
            replica.runner.run = fail

    (name,) = before
    ray.get(ray.get_actor(name, namespace="serve").__ray_call__.remote(kill))
    answers: list[Any] = []

    def back() -> bool:
        answer = httpx.post(f"{address}/v1/completions", json=PARIS, timeout=WITHIN)
        answers.append([answer.status_code, answer.text])
        return answer.status_code == 200

    _wait_for(back)
    return {"answers": answers, "replicas": [before, _replicas()]}


def configured(folder: Path, address: str) -> Found:
    """The page's config file, as the page's command runs it; answers with and without its key."""
    (folder / "config.yaml").write_text(CONFIG)
    program, *argv = shlex.split(COMMAND)
    cluster = ["--non-blocking", "--address", ray.get_runtime_context().gcs_address]
    command = [str(Path(sys.executable).parent / program), argv[0], *cluster, *argv[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _wait_for(lambda: serve.status().applications["llm"].status == "RUNNING")
    answers: dict[str, Any] = {}
    for key in ("secret", "wrong"):
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{address}/llm/v1/completions"
        answer = httpx.post(url, json=PARIS, headers=headers, timeout=WITHIN)
        answers[key] = [answer.status_code, answer.json()]
    return answers


PARTS = (data_set, programs, answered, replaced, died, configured)


@contextlib.contextmanager
def _cluster() -> Iterator[str]:
    """A Ray of two cores with Serve; the address of its proxy."""
    port = free_port()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"port": port})
        yield f"http://localhost:{port}"
        serve.shutdown()
    finally:
        ray.shutdown()


def _client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0, timeout=WITHIN)


def _replicas() -> list[str]:
    """The names of the actors that serve the application `quire`."""
    actors: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    names = [one["name"] for one in actors]
    return [name for name in names if name.startswith("SERVE_REPLICA::quire#")]


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def _printed(program: Callable[[], object]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        program()
    return out.getvalue()


def _example(name: str, *argv: str) -> str:
    """What an example prints."""
    path = str(ROOT / "examples" / name)
    with mock.patch.object(sys, "argv", [path, *argv]):
        return _printed(lambda: runpy.run_path(path, run_name="__main__"))


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module=r"ray\.")
    folder = Path(sys.argv[1])
    with _cluster() as address:
        found: Found = {}
        for part in PARTS:
            began = time.monotonic()
            found[part.__name__] = part(folder, address)
            print(f"{part.__name__}: {time.monotonic() - began:.1f} s", file=sys.stderr)
    print(json.dumps(found))
