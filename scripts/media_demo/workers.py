"""The worker processes that make what a model is trained on. Imports no jax."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

_THREADS = ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def make_workers() -> ProcessPoolExecutor:
    """A process for each core, none of which takes more than that: numpy would take all of them."""
    for name in _THREADS:
        os.environ.setdefault(name, "1")  # read by the processes when they start
    return ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))
