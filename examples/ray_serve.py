"""Serves a model on a Ray cluster, or on this machine alone, and asks it something.

    python examples/ray_serve.py [--model MODEL] [--replicas N] [--gpus N] [--port PORT]

On a cluster that runs already the model is served until `serve shutdown`, otherwise until this
program ends. Needs `pip install 'quire[ray]'` and the openai package.
"""

import argparse

from openai import OpenAI
from ray import serve

import quire.ray


def main(model: str, replicas: int, gpus: int, port: int) -> None:
    serve.start(http_options={"port": port})
    app = quire.ray.app(
        model,
        tensor_parallel_size=max(gpus, 1),
        num_gpus=gpus,
        autoscaling_config={"min_replicas": 1, "max_replicas": replicas},
    )
    serve.run(app, name="quire")
    with OpenAI(base_url=f"http://localhost:{port}/v1", api_key="EMPTY") as client:
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
            stream=True,
        )
        for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--replicas", type=int, default=1, help="most at a time")
    parser.add_argument("--gpus", type=int, default=0, help="of each replica")
    parser.add_argument("--port", type=int, default=8000)
    main(**vars(parser.parse_args()))
