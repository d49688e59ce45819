"""A crowd of streaming clients, some of which hang up: does the server hold its ground?

    python benchmarks/serve_load.py [--clients 200] [--seconds 60] [--model MODEL] [-- SERVER FLAGS]
    python benchmarks/serve_load.py --base-url http://localhost:8000/v1

Each client asks for one answer after another until the time is up. Prints one JSON line. The exit
status is 1 where a request failed, or where the server holds pages after the last answer.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import http.client
import json
import multiprocessing
import multiprocessing.connection
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from quire.entrypoints.bench.openai_client import Reply
from quire.entrypoints.bench.report import percentile
from quire.entrypoints.http_client import HttpClient, RequestFailedError

PROBE_EVERY = 0.01
SETTLED_WITHIN = 30.0
STARTED_WITHIN = 600.0
PROMPTS = (
    "What is the capital of France?",
    "Which day comes after Monday?",
    "Tell me a joke.",
    "What is 3 + 4?",
    "What's the weather like in San Francisco?",
)


@dataclasses.dataclass
class Load:
    """What the clients saw."""

    hang_up: float
    """Share of the requests whose client goes before the end."""
    max_tokens: int
    """Each answer has half as many to as many tokens."""
    first_token_s: list[float] = dataclasses.field(default_factory=list)
    durations: list[float] = dataclasses.field(default_factory=list)
    """Of whole answers."""
    tokens: int = 0
    hung_up: int = 0
    errors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    async def client(self, http: HttpClient, model: str, end: float, draws: random.Random) -> None:
        """Asks again and again until `end`, in seconds of `time.perf_counter()`."""
        while time.perf_counter() < end:
            try:
                await self._ask(http, model, draws)
            except (RequestFailedError, OSError) as error:
                self.errors[f"{type(error).__name__}: {error}"[:200]] += 1
                await asyncio.sleep(0.1)

    async def _ask(self, http: HttpClient, model: str, draws: random.Random) -> None:
        path, body = _request(model, draws, self.max_tokens)
        reply = Reply(time.perf_counter())
        patience = self._patience(draws)
        try:
            async with asyncio.timeout(patience):
                async with contextlib.aclosing(http.events(path, body)) as events:
                    async for event in events:
                        reply.take(event)
        except TimeoutError:
            if patience is None:
                raise
            self.hung_up += 1
        else:
            self.durations.append(time.perf_counter() - reply.sent)
        self.tokens += reply.output_tokens or len(reply.arrivals)
        if reply.arrivals:
            self.first_token_s.append(reply.arrivals[0] - reply.sent)

    def _patience(self, draws: random.Random) -> float | None:
        """Seconds until the client hangs up: at any point of an answer like those before."""
        if draws.random() >= self.hang_up:
            return None
        return draws.random() * (statistics.fmean(self.durations[-50:]) if self.durations else 1.0)


def _request(model: str, draws: random.Random, max_tokens: int) -> tuple[str, dict[str, Any]]:
    """One request; most begin unlike the others, so that few pages are shared."""
    prompt = f"{draws.randrange(10**6)}: {draws.choice(PROMPTS)}"
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": draws.randint(max_tokens // 2, max_tokens),
        "ignore_eos": True,
        "temperature": draws.choice((0.0, 0.8)),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if draws.random() < 0.5:
        return "/v1/completions", {**body, "prompt": prompt}
    return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": prompt}]}


async def run_clients(args: argparse.Namespace, address: str) -> tuple[Load, float, dict[str, int]]:
    """The clients' findings, how long they took, and what the server holds in the end."""
    http = HttpClient(address, args.api_key, "--base-url")
    model = args.model if args.base_url and args.model else await _first_model(address, args)
    load = Load(args.hang_up, args.max_tokens)
    started = time.perf_counter()
    end = started + args.seconds
    async with asyncio.TaskGroup() as group:
        for number in range(args.clients):
            draws = random.Random(args.seed * 10**6 + number)
            group.create_task(load.client(http, model, end, draws))
    seconds = time.perf_counter() - started
    return load, seconds, await _settled(http)


async def _first_model(address: str, args: argparse.Namespace) -> str:
    return await HttpClient(f"{address}/v1", args.api_key, "--base-url").first_model()


async def _settled(http: HttpClient) -> dict[str, int]:
    """What the server holds, once that is nothing or a while has passed."""
    end = time.perf_counter() + SETTLED_WITHIN
    while True:
        held = holdings((await http.get("/metrics")).decode())
        if not any(held.values()) or time.perf_counter() > end:
            return held
        await asyncio.sleep(0.2)


def holdings(metrics: str) -> dict[str, int]:
    """Pages in use, running and waiting sequences, from a server's metrics. Raises ValueError."""
    share = metric(metrics, "kv_cache_usage_perc")
    pages = re.search(r'cache_config_info\{.*?num_gpu_blocks="(\d+)"', metrics)
    if pages is None:
        raise ValueError("the metrics have no cache_config_info with num_gpu_blocks")
    return {
        "pages_in_use": round(share * int(pages[1])),
        "running": round(metric(metrics, "num_requests_running")),
        "waiting": round(metric(metrics, "num_requests_waiting")),
    }


def metric(metrics: str, name: str) -> float:
    """One value of a server's metrics. Raises ValueError."""
    found = re.search(rf"^\w+:{name}(?:\{{.*\}})? (\S+)$", metrics, re.MULTILINE)
    if found is None:
        raise ValueError(f"the metrics have no {name}")
    return float(found[1])


def probe(address: str, pipe: "multiprocessing.connection.Connection") -> None:
    """Asks for /health until told to stop, and sends when, and how long each answer took.

    It is a process of its own, so that the clients' work delays none of its figures.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    url = urlsplit(address)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=60)
    latencies: list[tuple[float, float]] = []
    failures: list[str] = []
    begun = time.perf_counter()
    while not pipe.poll(PROBE_EVERY):
        started = time.perf_counter()
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                failures.append(f"HTTP {answer.status}")
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{type(error).__name__}: {error}")
            connection.close()
        latencies.append((started - begun, time.perf_counter() - started))
    pipe.send((latencies, failures))


@contextlib.contextmanager
def probing(address: str) -> Iterator[Callable[[], tuple[list[tuple[float, float]], list[str]]]]:
    """Runs `probe` during the block; the callable ends it and gives what it found."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=probe, args=(address, theirs), daemon=True)
    process.start()

    def found() -> tuple[list[tuple[float, float]], list[str]]:
        ours.send(None)
        return ours.recv()

    try:
        yield found
    finally:
        process.terminate()
        process.join()


@contextlib.contextmanager
def server(model: str | None, flags: Sequence[str]) -> Iterator[str]:
    """The address of a server on a free port, which ends with the block."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "quire.entrypoints.openai.api_server", "--port", str(port)]
    command += ["--disable-access-log", "--uvicorn-log-level", "warning", *flags]
    command += [] if model is None else ["--model", model]
    process = subprocess.Popen(command, stdout=sys.stderr)
    try:
        _wait(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with status {process.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"the server did not answer within {STARTED_WITHIN} s")


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float] | None:
    """Percentiles and the largest; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    found = {f"p{share}": percentile(ordered, share) for share in (50, 90, 99)}
    return {name: round(value * scale, 4) for name, value in {**found, "max": ordered[-1]}.items()}


def pauses(latencies: Sequence[tuple[float, float]]) -> list[dict[str, float]]:
    """The longest that the server's event loop let /health wait, and when, longest first."""
    longest = sorted(latencies, key=lambda one: -one[1])[:5]
    return [{"at_s": round(at, 1), "ms": round(latency * 1e3, 1)} for at, latency in longest]


def measure(args: argparse.Namespace, address: str) -> dict[str, Any]:
    """The record of one load."""
    with probing(address) as probed:
        load, seconds, held = asyncio.run(run_clients(args, address))
        latencies, failures = probed()
    load.errors.update(f"/health: {failure}" for failure in failures)
    return {
        "benchmark": "serve_load",
        "model": args.model or "demo",
        "clients": args.clients,
        "seconds": round(seconds, 2),
        "requests": len(load.durations) + load.hung_up + load.errors.total(),
        "failed": load.errors.total(),
        "hung_up": load.hung_up,
        "errors": dict(load.errors),
        "first_token_s": spread(load.first_token_s),
        "answer_s": spread(load.durations),
        "tokens_per_s": round(load.tokens / seconds, 1),
        "health_ms": spread([latency for _, latency in latencies], 1e3),
        "longest_pauses": pauses(latencies),
        **held,
    }


def main() -> int:
    """Runs the load; 1 where something failed or leaked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0, help="when the last requests go out")
    parser.add_argument("--hang-up", type=float, default=0.1, help="share of the requests")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--model", help="default: the demo model, or the first of --base-url")
    parser.add_argument("--base-url", help="of a running server; without it one is started")
    parser.add_argument("--api-key")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("server_flags", nargs="*", help="after --: flags of the server it starts")
    args = parser.parse_args()
    if args.base_url:
        record = measure(args, args.base_url.rstrip("/").removesuffix("/v1"))
    else:
        with server(args.model, args.server_flags) as address:
            record = measure(args, address)
    print(json.dumps(record))
    return int(bool(record["failed"] or record["pages_in_use"] or record["running"]))


if __name__ == "__main__":
    sys.exit(main())
