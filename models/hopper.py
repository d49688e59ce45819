"""Whether the kernels for Hopper GPUs can run here."""

import jax


def why_not(backend: str, dtype: str) -> str | None:
    """What keeps every kernel from running on arrays of `dtype`; None where nothing does."""
    if backend != "gpu":
        return f"JAX runs on {backend}"
    if jax.__version_info__ < (0, 11, 2):
        return f"the kernels need jax 0.11.2, this is {jax.__version__}"
    capability = getattr(jax.devices()[0], "compute_capability", "0")
    if int(float(capability)) != 9:
        return f"the kernels are for compute capability 9 (Hopper), this GPU has {capability}"
    if dtype not in ("bfloat16", "float16"):
        return f"the kernels know bfloat16 and float16, not {dtype}"
    return None
