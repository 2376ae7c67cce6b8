"""Run exported video diffusion models with NumPy and a backend: no PyTorch.

    with telecine.load("bundle/") as pipe:
        pipe.generate(prompt="a red ball rolls to the left", seed=0).save("ball.mp4")

Importing this package loads nothing heavy: names resolve when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from telecine.backends.onnxruntime import OnnxRuntimeOptions
    from telecine.bundle import Bundle
    from telecine.condition import Condition
    from telecine.errors import (
        BackendError,
        BundleError,
        Cancelled,
        EngineError,
        RequestError,
        SourceError,
        TelecineError,
    )
    from telecine.pipeline import Pipeline, load
    from telecine.results import FrameStream, Result

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "Cancelled",
    "Condition",
    "EngineError",
    "FrameStream",
    "OnnxRuntimeOptions",
    "Pipeline",
    "RequestError",
    "Result",
    "SourceError",
    "TelecineError",
    "load",
]

_HOMES = {
    "Bundle": "bundle",
    "Condition": "condition",
    "FrameStream": "results",
    "OnnxRuntimeOptions": "backends.onnxruntime",
    "Pipeline": "pipeline",
    "Result": "results",
    "load": "pipeline",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
