"""The benchmarks of `quire bench`: each module measures one thing and returns its figures."""
