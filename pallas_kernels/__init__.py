"""Attention kernels: arrays and ints in, arrays out. Imports jax and nothing else of Quire."""
