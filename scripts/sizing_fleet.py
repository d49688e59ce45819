"""A thousand H200s that serve Llama 3.1 70B's shape, on paper: two tables of docs/sizing.md.

    python scripts/sizing_fleet.py

What one GPU did comes from benchmarks/results/h200.jsonl, what one holds from sizing.py; all else
is assumed, here and in the tables. Prints Markdown.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from sizing import SHAPES, VOCABULARY, Share, markdown, share

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "h200.jsonl"
COMMIT = "93732bc"
"""Whose results are taken: all workloads in one run."""
MODEL, TENSOR, GPUS, HOST = "70B", 4, 1000, 8
"""HOST: GPUs of one machine."""
BANDWIDTH = 4.814e12
"""Bytes a second of an H200's memory, as its driver tells them."""
SUM, SUM_OF_XLA, LINK = 5e-6, 25e-6, 300e9
"""Seconds of a sum over the GPUs of a replica in a decode step, by Quire's kernel and by XLA's,
beside the way of its bytes, as measured on two (docs/log.md, 2026-11-29); assumed: bytes a second
at which activations go from a GPU to others, of 450e9 that NVLink has each way."""
PROMPT, CACHED, OUTPUT, ROWS = 2000, 1000, 300, 128
"""The mix, assumed: tokens of a prompt, those of them in the prefix cache, tokens of an answer; and
how many requests a replica runs at once."""
PEAK = 2
"""Assumed: the busiest hour over the mean."""
FAILURES, FAILED_DAYS, FAILED_GPUS = 419, 54, 16384
"""Unexpected interruptions of the training of Llama 3 405B (arXiv:2407.21783, section 3.3.4)."""
REPAIR_DAYS, STORE, WAVES, DRAIN = 1, 5e9, 20, 30
"""Assumed: days until a host is back; bytes a second at which a replica reads weights; in how many
parts replicas are replaced; seconds for running requests to end (`shutdown_timeout`)."""
TEXT, EVENT = 4.5, 300
"""Assumed bytes: of a prompt's token, of an event that streams one token."""
POWER, OVERHEAD = 10.2, 1.3
"""kW of a host of eight at most (NVIDIA's figure for DGX H200); the building's factor, assumed."""

Line = tuple[str, str, str]
"""What, its arithmetic, and where its numbers are from."""


def measured(benchmark: str, **conditions: str) -> dict[str, Any]:
    """The first line of results that is so."""
    wanted = {"benchmark": benchmark, "commit": COMMIT} | conditions
    lines = map(json.loads, RESULTS.read_text().splitlines())
    return next(line for line in lines if wanted.items() <= line.items())


def workload(name: str) -> dict[str, Any]:
    return measured("workload", workload=name)


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a GPU reaches."""

    bandwidth: float
    """Bytes of memory a second."""
    flops: float
    """Operations a second of matrix products."""
    of_sum: float = SUM
    """Seconds of one sum in a decode step, beside the way of its bytes."""
    link: float = LINK
    """Bytes a second from a GPU to others."""


@dataclasses.dataclass(frozen=True)
class Replica:
    """One copy of a model on some GPUs. Bytes and operations are those of one GPU."""

    model: str
    gpus: int
    held: Share

    @property
    def width(self) -> int:
        return SHAPES[self.model]["hidden_size"]

    @property
    def sums(self) -> int:
        """Of a step: two a layer and one for the embedding."""
        return 2 * SHAPES[self.model]["num_hidden_layers"] + 1 if self.gpus > 1 else 0

    @property
    def _table(self) -> float:
        """Bytes of the embedding, or of the head."""
        return 2 * VOCABULARY * self.width / self.gpus

    @property
    def read(self) -> float:
        """Bytes of weights that a decode step reads: all but the embedding."""
        return self.held.weights - self._table

    def flops(self, context: float) -> float:
        """Of a prompt's token that sees so many: two for each weight of a layer, which has two
        bytes, and attention."""
        attention = 4 * context * self.width * SHAPES[self.model]["num_hidden_layers"]
        return self.read - self._table + attention / self.gpus

    def attended(self, rows: int, context: float) -> float:
        """Bytes of K and V that a decode step reads."""
        return rows * context * self.held.token

    def step(self, rows: int, context: float, rates: Rates) -> float:
        """Seconds of a decode step: products wait for weights or for operations, whichever takes
        longer."""
        products = max(self.read / rates.bandwidth, rows * self.read / rates.flops)
        attention = self.attended(rows, context) / rates.bandwidth
        return products + attention + self.sums * self.of_sum(rows, rates)

    def of_sum(self, rows: int, rates: Rates) -> float:
        """Seconds of a sum in a decode step: each GPU sends what it has to all others, or XLA has
        parts of it go around."""
        way = rows * 2 * self.width * (self.gpus - 1) / rates.link
        return min(rates.of_sum + way, SUM_OF_XLA + way * 2 / self.gpus)

    def exchange(self) -> float:
        """Seconds in which a prompt's token goes around the GPUs in all sums."""
        return self.sums * 2 * self.width * 2 * (self.gpus - 1) / self.gpus / LINK

    def prompt(self, tokens: int, before: int, rates: Rates) -> float:
        """Seconds of so many tokens of a prompt, behind others."""
        return tokens * (self.flops(before + tokens / 2) / rates.flops + self.exchange())


def replica(model: str, gpus: int) -> Replica:
    return Replica(model, gpus, share(model, gpus))


def reached(small: Replica) -> Rates:
    """By one H200 with the 8B shape: in decode steps of 64 requests, and in prompts of 8,192."""
    decoded = small.read + small.attended(64, 1024 + 256 / 2)
    return Rates(
        bandwidth=decoded / workload("b64_decode")["ms_per_step"] * 1e3,
        flops=16 * 8192 * small.flops(8192 / 2) / workload("prefill_8k")["median_s"],
    )


def steps(rates: Rates) -> str:
    """Decode by the GPUs of a replica and requests at once, at the mix's mean context."""
    header = (
        "GPUs of a replica", "requests at once", "step by bandwidth alone, ms",
        "step by measured rates, with sums, ms", "tokens a second of a replica",
        "of 1,000 GPUs", "fit in the pool",
    )  # fmt: skip
    context, rows = PROMPT + OUTPUT / 2, []
    best = Rates(BANDWIDTH, float("inf"), of_sum=0, link=float("inf"))
    for one in (replica(MODEL, gpus) for gpus in (2, 4, 8)):
        fit = (one.held.tokens or 0) // (PROMPT + OUTPUT)
        for at_once in (1, 64, 128, 256):
            least, step = (one.step(at_once, context, r) for r in (best, rates))
            speed = at_once / step
            rows.append((
                str(one.gpus), str(at_once), f"{least * 1e3:.1f}", f"{step * 1e3:.1f}",
                f"{speed:,.0f}", f"{speed * (GPUS // one.gpus):,.0f}",
                "yes" if fit >= at_once else f"{fit} do",
            ))  # fmt: skip
    return markdown(header, rows)


def of_rates(small: Replica, rates: Rates) -> list[Line]:
    """What was measured, and what it says of a workload that it was not taken from."""
    decoded = small.read + small.attended(64, 1152)
    step = workload("b64_decode")["ms_per_step"]
    prefill, batch = (workload(name)["median_s"] for name in ("prefill_8k", "b256_batch"))
    prompts = 256 * small.prompt(512, 0, rates)
    each = small.step(256, 512 + 256 / 2, rates)
    sum_of_both = prompts + 255 * each
    return [
        (
            "bandwidth reached, one GPU, 8B",
            f"({small.read / 1e9:.1f} GB of weights + 64 x 1,152 tokens x {small.held.token:,} B) "
            f"/ {step} ms = {decoded / step / 1e9:.2f} TB/s, "
            f"{rates.bandwidth / BANDWIDTH:.0%} of {BANDWIDTH / 1e12:.1f}",
            "measured: b64_decode",
        ),
        (
            "operations reached, one GPU, 8B",
            f"16 x 8,192 tokens x {small.flops(4096) / 1e9:.1f} GFLOP / {prefill:.2f} s = "
            f"{rates.flops / 1e12:.0f} TFLOP/s",
            "measured: prefill_8k",
        ),
        (
            "both put to the test: 256 requests of 512 + 256 tokens, 8B",
            f"{prompts:.2f} s of prompts + 255 steps x {each * 1e3:.1f} ms = {sum_of_both:.2f} s; "
            f"it took {batch:.2f} s",
            "measured: b256_batch",
        ),
    ]


@dataclasses.dataclass(frozen=True)
class Fleet:
    """Replicas that serve the mix."""

    one: Replica
    rates: Rates
    count: int = GPUS // TENSOR
    hosts: int = GPUS // HOST

    @property
    def step(self) -> float:
        return self.one.step(ROWS, PROMPT + OUTPUT / 2, self.rates)

    @property
    def prefill(self) -> float:
        """Seconds of a request's prompt."""
        return self.one.prompt(PROMPT - CACHED, CACHED, self.rates)

    @property
    def decode(self) -> float:
        """Seconds of a request's answer, of which as many as run share each step."""
        return OUTPUT * self.step / ROWS

    @property
    def requests(self) -> float:
        """A second, of one replica."""
        return 1 / (self.prefill + self.decode)

    @property
    def total(self) -> float:
        """Requests a second of all."""
        return self.requests * self.count


def of_requests(fleet: Fleet) -> list[Line]:
    one, rates, new = fleet.one, fleet.rates, PROMPT - CACHED
    prefill, decode, total = fleet.prefill, fleet.decode, fleet.total
    flops = one.flops(CACHED + new / 2)
    saved = one.prompt(CACHED, 0, rates)
    server = measured("serve_throughput")["served_tokens_per_s"]
    day = total * 86400 / PEAK
    return [
        (
            "a decode step",
            f"({one.read / 1e9:.1f} GB of weights + {ROWS} x {PROMPT + OUTPUT // 2:,} tokens x "
            f"{one.held.token:,} B) / {rates.bandwidth / 1e12:.2f} TB/s + {one.sums} sums x "
            f"({SUM * 1e6:.0f} us + {ROWS} x {2 * one.width:,} B x {TENSOR - 1} / "
            f"{LINK / 1e9:.0f} GB/s) = {fleet.step * 1e3:.1f} ms",
            "5 us measured on two GPUs; link assumed",
        ),
        (
            "a prompt",
            f"{new:,} new tokens x ({flops / 1e9:.1f} GFLOP / {rates.flops / 1e12:.0f} TFLOP/s + "
            f"{one.sums} x {2 * one.width:,} B x 2 x {TENSOR - 1} / {TENSOR} / "
            f"{LINK / 1e9:.0f} GB/s) = {prefill * 1e3:.1f} ms",
            "link assumed",
        ),
        (
            "a request",
            f"{prefill * 1e3:.1f} ms + {OUTPUT} steps x {fleet.step * 1e3:.1f} ms / {ROWS} = "
            f"{(prefill + decode) * 1e3:.1f} ms of its replica",
            "mix assumed",
        ),
        (
            "a replica",
            f"1 / {(prefill + decode) * 1e3:.1f} ms = {fleet.requests:.1f} requests, "
            f"{fleet.requests * OUTPUT:,.0f} tokens out a second; a server process gave "
            f"{server:,.0f} with the 8B",
            "the last measured: serve_throughput.py",
        ),
        (
            "all replicas, at the peak",
            f"{fleet.count} x {fleet.requests:.1f} = {total:,.0f} requests, "
            f"{total * OUTPUT:,.0f} tokens out a second",
            "",
        ),
        (
            "a day",
            f"{total:,.0f} x 86,400 s / {PEAK} = {day / 1e6:,.0f} million requests, "
            f"{day * OUTPUT / 1e9:,.0f} billion tokens out",
            "peak over mean assumed",
        ),
        (
            "what the prefix cache saves a request",
            f"{saved * 1e3:.0f} ms: without a hit it takes {saved / (prefill + decode):.0%} longer",
            "",
        ),
    ]


def of_operation(fleet: Fleet) -> list[Line]:
    one, count, hosts, total = fleet.one, fleet.count, fleet.hosts, fleet.total
    tokens, beside = one.held.tokens or 0, HOST // TENSOR
    running = ROWS * (PROMPT + OUTPUT)
    failures = FAILURES / (FAILED_DAYS * FAILED_GPUS) * GPUS
    weights = one.held.weights * TENSOR
    cold = measured("startup")["cold"]["first_token_s"]
    start, wave = weights / STORE + cold, -(-count // WAVES)
    sent = total * (PROMPT * TEXT + OUTPUT * EVENT)
    power = hosts * POWER * OVERHEAD / 1e3
    return [
        (
            "KV of a replica",
            f"{tokens:,} tokens - {ROWS} x {PROMPT + OUTPUT:,} that run = {tokens - running:,} "
            "for prefixes that stay",
            "first table",
        ),
        ("KV of all", f"{count} x {tokens:,} = {count * tokens / 1e6:,.0f} million tokens", ""),
        (
            "failures",
            f"{FAILURES} / ({FAILED_DAYS} days x {FAILED_GPUS:,} GPUs) x {GPUS:,} = "
            f"{failures:.2f} a day, one in {1 / failures:.1f} days",
            "Llama 3's training",
        ),
        (
            "what they take",
            f"{failures:.2f} x {beside} replicas of a host x {REPAIR_DAYS} day = "
            f"{failures * beside * REPAIR_DAYS:.2f} of {count} replicas on average; "
            f"{failures:.2f} x {beside} x {ROWS} = {failures * beside * ROWS:,.0f} requests a day",
            "repair assumed",
        ),
        (
            "a start",
            f"{weights / 1e9:.0f} GB / {STORE / 1e9:.0f} GB/s + {cold:.1f} s = {start:.0f} s",
            "the second measured: quire bench startup, 8B, one GPU, empty cache",
        ),
        (
            "replacing all",
            f"{WAVES} waves of {wave} replicas x ({DRAIN} s to drain + {start:.0f} s) = "
            f"{WAVES * (DRAIN + start) / 60:.0f} min at {1 - wave / count:.0%} of them",
            "waves assumed",
        ),
        (
            "weights of a wave",
            f"{wave} x {weights / 1e9:.0f} GB = {wave * weights / 1e12:.1f} TB, "
            f"{wave} x {STORE / 1e9:.0f} GB/s = {wave * STORE / 1e9:.0f} GB/s",
            "",
        ),
        (
            "network for requests",
            f"{total:,.0f} x ({PROMPT:,} x {TEXT} B + {OUTPUT} x {EVENT} B) = "
            f"{sent / 1e6:,.0f} MB/s, {sent * 8 / hosts / 1e6:.0f} Mbit/s a host",
            "sizes assumed",
        ),
        (
            "power",
            f"{hosts} hosts x {POWER} kW x {OVERHEAD} = {power:.2f} MW; "
            f"{power * 1e6 / total / OUTPUT:.1f} J a token out at the peak",
            "NVIDIA's most; overhead assumed",
        ),
    ]


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    small = replica("8B", 1)
    rates = reached(small)
    fleet = Fleet(replica(MODEL, TENSOR), rates)
    lines = [*of_rates(small, rates), *of_requests(fleet), *of_operation(fleet)]
    print(steps(rates), markdown(("what", "arithmetic", "from"), lines), sep="\n\n")


if __name__ == "__main__":
    main()
