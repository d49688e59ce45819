"""Options of an application: whose they are, and what is chosen where they are left out."""

import inspect
import subprocess
import sys
from typing import Any

import pytest
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

import quire.ray
from quire import OptionError
from quire.entrypoints.ray import gpus, options
from quire.entrypoints.ray.options import deployment_options, read_options


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUIRE_API_KEY", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_machine_has_any", lambda: True)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)


def test_options_go_to_three() -> None:
    read = read_options(
        {"num_replicas": 3, "max_model_len": 64, "max_n": 5, "chat_template": "x", "task": "auto"}
    )
    assert read.deployment["num_replicas"] == 3
    assert read.engine == {"max_model_len": 64, "chat_template": "x", "task": "auto"}
    assert (read.server.max_n, read.server.chat_template) == (5, "x")


def test_no_name_is_of_both_serve_and_quire() -> None:
    own = options._names(options.EngineOptions) | options._names(options.ServerOptions)
    assert not deployment_options() & (own | {"num_gpus", "model"})
    assert deployment_options() > {"num_replicas", "autoscaling_config", "ray_actor_options"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_replica": 2}, "unknown option 'num_replica'. Did you mean 'num_replicas'"),
        ({"port": 8000}, "port is Ray Serve's here: give http_options of serve.start instead"),
        ({"shutdown_timeout": 1}, "give graceful_shutdown_timeout_s instead"),
        ({"mesh": None}, "unknown option 'mesh'"),
        ({"max_n": 0}, "max_n=0 is not allowed"),
        ({"num_gpus": 1, "ray_actor_options": {"num_gpus": 1}}, "num_gpus is given twice"),
    ],
)
def test_mistakes_are_told(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        quire.ray.app("demo", **given)


def test_what_is_chosen() -> None:
    assert read_options({}).deployment == {
        "name": "quire",
        "max_ongoing_requests": 80,
        "health_check_period_s": 2.0,
        "graceful_shutdown_timeout_s": 300.0,
        "ray_actor_options": {"num_gpus": 0},
    }
    given: dict[str, Any] = {"max_ongoing_requests": 7, "graceful_shutdown_timeout_s": 1.0}
    given |= {"name": "other", "health_check_period_s": 3.0, "ray_actor_options": {"num_gpus": 2.0}}
    assert read_options(given).deployment == given


def test_requests_are_counted_by_what_the_engine_runs_at_once() -> None:
    read = read_options({"max_num_seqs": 8, "autoscaling_config": {"max_replicas": 4}})
    assert read.deployment["max_ongoing_requests"] == 10
    scaling = {"target_ongoing_requests": 8, "max_replicas": 4}
    assert read.deployment["autoscaling_config"] == scaling
    assert read_options({"num_gpus": 1}).deployment["max_ongoing_requests"] == 320


@pytest.mark.parametrize(
    "config", [{"target_ongoing_requests": 3}, AutoscalingConfig(target_ongoing_requests=3), None]
)
def test_scaling_that_is_told_is_kept(config: Any) -> None:
    found = read_options({"autoscaling_config": config}).deployment["autoscaling_config"]
    assert found == config


def test_automatic_replicas_have_the_target_too() -> None:
    deployment: Any = serve.deployment(
        type("Empty", (), {}), **read_options({"num_replicas": "auto"}).deployment
    )
    config = deployment._deployment_config.autoscaling_config
    assert config is not None
    assert config.target_ongoing_requests == 64
    assert deployment.max_ongoing_requests == 80


@pytest.mark.usefixtures("machine_with_gpus")
def test_a_replica_has_the_gpus_of_its_engine() -> None:
    def asked(**given: Any) -> float:
        return read_options(given).deployment["ray_actor_options"]["num_gpus"]

    assert asked() == 1
    assert asked(tensor_parallel_size=4) == 4
    assert asked(tensor_parallel_size=4, data_parallel_size=2) == 8
    assert asked(tensor_parallel_size=4, num_gpus=0) == 0
    assert asked(ray_actor_options={"num_gpus": 0.5, "num_cpus": 2}) == 0.5


def test_other_gpus_than_the_engine_computes_on_are_refused() -> None:
    gpus._check(["0", "1"], 2, "x")
    with pytest.raises(OptionError, match="2 GPUs, .* is 1. Give num_gpus=1 in map_batches.$"):
        gpus._check(["0", "1"], 1, "map_batches")
    with pytest.raises(OptionError, match="0 GPUs, .* num_gpus=4 in x, or JAX_PLATFORMS=cpu"):
        gpus._check([], 4, "x")


@pytest.mark.usefixtures("machine_with_gpus")
def test_outside_of_an_actor_gpus_are_not_rays() -> None:
    gpus.check_gpus({"tensor_parallel_size": 2}, "x")


def test_keys_of_the_environment_go_to_the_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_options({}).server.api_key is None
    monkeypatch.setenv("QUIRE_API_KEY", "secret")
    assert read_options({}).server.api_key == ["secret"]
    assert read_options({"api_key": ["other"]}).server.api_key == ["other"]


def test_an_application_is_built_of_arguments_or_of_a_mapping() -> None:
    for app in (
        quire.ray.app("demo", max_n=5),
        quire.ray.app({"model": "demo", "max_n": 5}),
        quire.ray.app(),
    ):
        assert isinstance(app, Application)
    assert len(inspect.signature(quire.ray.app).parameters) == 1
    with pytest.raises(OptionError, match="max_n: given twice"):
        quire.ray.app({"max_n": 5}, max_n=5)


def test_without_ray_it_says_what_to_install() -> None:
    code = (
        "import importlib.util as util, quire; find = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'ray' else find(name)\n"
        "try: quire.ray\n"
        "except quire.OptionError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "quire.ray needs ray: run `pip install 'quire[ray]'`.\n"
    code = "import sys; from quire import *; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
