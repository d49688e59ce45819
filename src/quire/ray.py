"""Engines on a Ray cluster: `Predictor` answers data sets, `app` is served by Ray Serve."""

from .entrypoints.extras import need

need(
    ("ray", "fastapi", "pandas", "prometheus_client", "pyarrow", "uvicorn"),
    "quire.ray needs",
    "ray",
)

from .entrypoints.ray.predictor import Predictor  # noqa: E402
from .entrypoints.ray.serving import app  # noqa: E402

__all__ = ["Predictor", "app"]
