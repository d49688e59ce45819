"""Batch jobs: `quire.batch.run` answers the rows of a file into another."""

from .entrypoints.batch.meter import Summary
from .entrypoints.batch.options import BatchOptions
from .entrypoints.batch.running import run

__all__ = ["BatchOptions", "Summary", "run"]
