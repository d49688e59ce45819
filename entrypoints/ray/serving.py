"""An application of Ray Serve with the routes of `quire serve`."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application

from ... import OptionError
from .options import read_options
from .replica import Replica


def app(model: str | Path | Mapping[str, Any] | None = None, **options: Any) -> Application:
    """A model behind the OpenAI API, for `serve.run`; each replica has an engine.

    Also a builder of applications for Serve's config files: `args` there are `model` and options.

    Args:
        model: as for `Engine`, or a mapping with `model` and options.
        **options: those of `serve.deployment` (`num_replicas`, `autoscaling_config`,
            `ray_actor_options`, ...), of `quire serve` as its flags have them but for those that
            are Serve's here, and of `Engine`; and `num_gpus`, the GPUs of a replica. None is
            `tensor_parallel_size * data_parallel_size` where the cluster, or without one this
            machine, has GPUs, else 0.

    Raises OptionError.
    """
    if isinstance(model, Mapping):
        if twice := model.keys() & options.keys():
            raise OptionError(f"{', '.join(sorted(twice))}: given twice. Leave one out.")
        return app(**model, **options)
    read = read_options(options)
    deployment = serve.deployment(Replica, **read.deployment)
    name = None if model is None else str(model)
    return deployment.bind(name, read.server, read.engine)


# Serve takes a function for a builder only where that has one parameter, of all arguments.
app.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
    [inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)]
)
