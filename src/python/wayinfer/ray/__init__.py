"""WayInfer as a worker on Ray: batches, replicas, and models over the memory of several machines.

    pip install wayinfer[ray]

`Predictor` answers rows of a Ray Data set, `serve_app` is an application of Ray Serve with the server's dialects,
`Pipeline` runs a model whose layers are shared out among machines.
"""

from __future__ import annotations

try:
    import ray as _ray  # noqa: F401
except ImportError as error:
    raise ImportError("wayinfer.ray needs Ray: pip install wayinfer[ray]") from error

from .pipeline import Pipeline, Text
from .plan import Plan, StagePlan
from .predictor import Predictor, predict
from .serve import serve_app

__all__ = ["Pipeline", "Plan", "Predictor", "StagePlan", "Text", "predict", "serve_app"]
