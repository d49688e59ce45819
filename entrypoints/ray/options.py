"""What an application can be told: options of Serve, of the server and of the engine."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from ray import serve

from ... import EngineOptions, OptionError
from ...errors import nearest
from ..arguments import COMPATIBLE
from ..openai.options import ENGINE_LEFT_OUT, ServerOptions
from .gpus import gpus_to_ask_for

NAME = "quire"
"""Of the deployment."""
SEQUENCES = {True: 256, False: 64}
"""That an engine runs at once, where it is told no other number, on a GPU and on a CPU."""
HEALTH_CHECK_PERIOD = 2.0
"""Seconds. Serve replaces a replica that fails three checks, and sends it requests until then."""
SHUTDOWN_TIMEOUT = 300.0
"""Seconds that running requests have to end when their replica is to stop."""
_PROXY = "give http_options of serve.start instead"
OF_SERVE = {
    **dict.fromkeys(("host", "port", "uds", "ssl_keyfile", "ssl_certfile"), _PROXY),
    **dict.fromkeys(("ssl_ca_certs", "ssl_cert_reqs"), _PROXY),
    "root_path": "give route_prefix of serve.run instead",
    "disable_access_log": "give logging_config instead",
    "uvicorn_log_level": "give logging_config instead",
    "enable_request_id_headers": "it always answers with them. Leave it out",
    "shutdown_timeout": "give graceful_shutdown_timeout_s instead",
}
"""Options of `quire serve` that are not the server's here, and what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class AppOptions:
    """Everything an application is made of but its model."""

    deployment: dict[str, Any]
    """Keywords of `serve.deployment`."""
    server: ServerOptions
    engine: dict[str, Any]
    """Engine options that were given."""


def read_options(given: Mapping[str, Any]) -> AppOptions:
    """Tells the options of an application from each other. Raises OptionError."""
    deployment_names = deployment_options()
    engine_names = _names(EngineOptions) - ENGINE_LEFT_OUT - {"mesh"} | COMPATIBLE.keys()
    server_names = _names(ServerOptions) - OF_SERVE.keys()
    for name in given:
        if name in OF_SERVE:
            raise OptionError(f"{name} is Ray Serve's here: {OF_SERVE[name]}.")
        if name not in deployment_names | engine_names | server_names | {"num_gpus"}:
            known = sorted(deployment_names | engine_names | server_names | {"model", "num_gpus"})
            hint = nearest(name, known)
            raise OptionError(f"unknown option {name!r}.{hint} Allowed: {', '.join(known)}.")
    engine = {name: given[name] for name in given if name in engine_names}
    deployment = {name: given[name] for name in given if name in deployment_names}
    server = ServerOptions(**{name: given[name] for name in given if name in server_names})
    return AppOptions(
        deployment=_deployment(deployment, engine, given.get("num_gpus")),
        # its replicas may run where the variables with keys are not set
        server=dataclasses.replace(server, api_key=list(server.keys) or None),
        engine=engine,
    )


def deployment_options() -> set[str]:
    """The names of what `serve.deployment` can be told."""
    return inspect.signature(serve.deployment).parameters.keys() - {"_func_or_class", "version"}


def _deployment(
    given: Mapping[str, Any], engine: Mapping[str, Any], num_gpus: float | None
) -> dict[str, Any]:
    """Keywords of `serve.deployment`, with what is left out."""
    actor = _actor_options(given, engine, num_gpus)
    running = engine.get("max_num_seqs") or SEQUENCES[actor["num_gpus"] > 0]
    chosen: dict[str, Any] = {
        "name": NAME,
        # those that wait in the engine begin as soon as others end; more wait in Serve, which
        # gives them to the replica that is free first
        "max_ongoing_requests": running + running // 4,
        "health_check_period_s": HEALTH_CHECK_PERIOD,
        "graceful_shutdown_timeout_s": SHUTDOWN_TIMEOUT,
        **given,
        "ray_actor_options": actor,
    }
    scaling = given.get("autoscaling_config")
    if isinstance(scaling, Mapping) or (scaling is None and given.get("num_replicas") == "auto"):
        chosen["autoscaling_config"] = {"target_ongoing_requests": running, **(scaling or {})}
    return chosen


def _actor_options(
    given: Mapping[str, Any], engine: Mapping[str, Any], num_gpus: float | None
) -> dict[str, Any]:
    actor = dict(given.get("ray_actor_options") or {})
    if num_gpus is not None and "num_gpus" in actor:
        raise OptionError("num_gpus is given twice: leave it out of ray_actor_options.")
    if num_gpus is not None:
        actor["num_gpus"] = num_gpus
    elif "num_gpus" not in actor:
        actor["num_gpus"] = gpus_to_ask_for(engine)
    return actor


def _names(options: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(options)}
