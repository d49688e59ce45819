"""Answers the rows of a file on a Ray cluster, or on this machine alone.

    python examples/ray_batch.py INPUT OUTPUT [--model MODEL] [--engines N] [--gpus N]

INPUT has rows as `quire batch` takes them, in Parquet or JSON lines; OUTPUT is a folder, which then
has Parquet files.
Needs `pip install 'quire[ray]'`.
"""

import argparse

import ray
from ray.data.expressions import col

from quire.ray import Predictor


def main(input: str, output: str, model: str, engines: int, gpus: int) -> None:
    read = ray.data.read_parquet if input.endswith(".parquet") else ray.data.read_json
    answers = read(input).map_batches(
        Predictor,
        fn_constructor_kwargs={
            "model": model,
            "sampling_params": {"temperature": 0, "max_tokens": 64},
            "tensor_parallel_size": max(gpus, 1),
        },
        compute=ray.data.ActorPoolStrategy(size=engines),
        num_gpus=gpus,
        batch_size=1024,
        batch_format="pyarrow",
    )
    answers.write_parquet(output)
    written = ray.data.read_parquet(output)
    errors = written.filter(expr=col("error").is_not_null()).count()
    print(f"{output}: {written.count()} rows, {errors} errors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0, help="of each engine")
    main(**vars(parser.parse_args()))
