"""Weights that stay on the host, of engines built for it: by TensorRT's own budget, one that is asked for, or a run's
`memory_limit`. On the doubles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.plans import write_plan

import telecine
from telecine.backends.base import NetworkFacts
from telecine.backends.tensorrt.backend import TensorRtBackend
from telecine.backends.tensorrt.session import TensorRtSession
from telecine.bundle import Bundle

REQUEST: dict[str, Any] = {"height": 64, "width": 32, "num_frames": 9, "num_inference_steps": 2, "seed": 0}
STREAMABLE = 1 << 20  # of the double's engines


@pytest.mark.parametrize(("weights", "budget"), [(0, 0), (1000, 1000), (1 << 40, STREAMABLE)])
def test_a_budget_that_is_asked_for(
    open_session: Callable[..., TensorRtSession], bundle: Bundle, tmp_path: Path, weights: int, budget: int
) -> None:
    open_session(weight_streaming=True).close()
    backend = TensorRtBackend(bundle, device="auto", engines=tmp_path / "engines")
    assert backend.facts("text_encoder", "main").streams
    with backend.load("text_encoder", "main", weights) as session:
        assert session._engine._engine.weight_streaming_budget_v2 == budget
        session.run({"input_ids": np.ones((1, 8), np.int64)})


def test_a_memory_limit_streams_what_has_no_room(
    tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans of the doubles are small: here the transformer's says that it takes 200 MiB."""
    right = TensorRtBackend.facts_of

    def facts(self: TensorRtBackend, plan: Any) -> NetworkFacts:
        found = right(self, plan)
        return dataclasses.replace(found, weights=200 << 20) if plan.sidecar.component == "transformer" else found

    monkeypatch.setattr(TensorRtBackend, "facts_of", facts)
    tensorrt()
    bundle = Bundle.open(tiny_bundle)
    for component in bundle.manifest.components:
        write_plan(
            bundle, component, engines=tmp_path / "engines", profiles=({"": (1, 4, 4096)},), weight_streaming=True
        )
    with telecine.load(tiny_bundle, backend="tensorrt", engines=tmp_path / "engines") as pipe:
        free = pipe.generate("a", **REQUEST)
        for limit, streamed in (("150MiB", True), ("1GiB", False)):
            result = pipe.generate("a", memory_limit=limit, **REQUEST)
            np.testing.assert_array_equal(result.frames, free.frames)
            assert result.memory.device is not None
            assert result.memory.device > 0
            budget = pipe._models._streamed["transformer"]
            assert (budget is not None and 0 < budget < 150 << 20) == streamed
