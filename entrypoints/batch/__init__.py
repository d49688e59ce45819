"""Batch jobs: a file of rows in, a file of answers out. `quire.batch` has its public names."""
