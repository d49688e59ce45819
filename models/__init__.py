"""Model definitions in Flax: one file is one architecture, and `registry` maps names to classes."""
