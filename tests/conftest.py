"""Settings for all tests: strict types, one compilation cache, GPU tests only on a GPU."""

import os
import signal
from collections.abc import Iterator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Sets JAX up, before anything imports it; processes that tests start share the cache."""
    # a shell that starts this in the background has it ignore Ctrl-C, which tests press
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")  # JAX's cache is not safe for several
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(config.cache.mkdir(f"xla-{worker}")),  # pyright: ignore
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "HF_HUB_OFFLINE": "1",
        "NPROC": "16",  # XLA's threads: one blocks while a warpgroup of Mosaic's interpreter waits
    }
    import jax

    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Iterator[None]:
    """Those of thousands of tests are gigabytes; what a module needs again is in the cache."""
    yield
    import jax

    jax.clear_caches()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `gpu` where JAX has none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import jax

    if (backend := jax.default_backend()) != "gpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU; JAX runs on {backend}"))
