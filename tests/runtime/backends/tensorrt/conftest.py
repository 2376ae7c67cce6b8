"""Sessions on the doubles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doubles.cuda_runtime import CudaDouble
from doubles.plans import write_plan

from telecine.backends.tensorrt.backend import TensorRtBackend
from telecine.backends.tensorrt.session import TensorRtSession
from telecine.bundle import Bundle

Open = Callable[..., TensorRtSession]


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def open_session(bundle: Bundle, tmp_path: Path, tensorrt: Callable[..., Any], gpu: CudaDouble) -> Open:
    """`open_session("transformer", library=..., device="cuda:1", **sidecar)`: a session of a plan that is written."""

    def open_(
        component: str = "text_encoder", *, device: str = "auto", cuda_graphs: Any = "auto", **options: Any
    ) -> TensorRtSession:
        tensorrt(*(options[name] for name in ("library", "version") if name in options))
        write_plan(bundle, component, engines=tmp_path / "engines", **options)
        engines = TensorRtBackend(bundle, device=device, engines=tmp_path / "engines", cuda_graphs=cuda_graphs)
        return engines.load(component, "main")

    return open_
