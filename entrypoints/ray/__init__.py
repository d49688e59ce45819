"""Engines on a Ray cluster: for data sets and behind Serve. `quire.ray` has its public names."""
