"""Passes in one batch, and one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import telecine
from telecine.backends.onnxruntime import OnnxRuntimeSession
from telecine.families import bound

REQUEST: dict[str, Any] = {
    "prompt": ["a red ball rolls", "the black cat sits on the old wooden ship"],
    "height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 3, "seed": 0, "output_type": "latent",
    "guidance_scale": [3.0, 1.0, 3.0], "stg_scale": [1.0, 1.0, 0.0], "stg_blocks": [1],
}  # fmt: skip


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call of the transformer."""
    seen: list[int] = []
    enqueue = OnnxRuntimeSession.enqueue

    def recorded(session: OnnxRuntimeSession, stream: int = 0) -> None:
        if "stg_mode" in session.inputs:
            seen.append(session._bound["hidden_states"].shape[0])
        enqueue(session, stream)

    monkeypatch.setattr(OnnxRuntimeSession, "enqueue", recorded)
    return seen


def test_large_passes_run_one_after_the_other_and_give_the_same(
    tiny_bundle: Path, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with telecine.load(tiny_bundle) as pipe:
        together = pipe.generate(**REQUEST).latents
        assert batches == [6, 4, 4]  # two videos, in three passes, then two, then two others
        batches.clear()
        monkeypatch.setattr(bound, "ONE_BY_ONE", 2 * 2 * 2 * 3)  # two videos of 12 tokens
        apart = pipe.generate(**REQUEST).latents
        assert batches == [2] * 7
        batches.clear()
        monkeypatch.setattr(bound, "ONE_BY_ONE", 2 * 2 * 2 * 3 + 1)
        pipe.generate(**REQUEST)
        assert batches == [6, 4, 4]
    assert together is not None
    assert together.std() > 0.05
    # The products of a row are the same; a batch of another size may be cut elsewhere for the threads.
    np.testing.assert_allclose(apart, together, rtol=0, atol=1e-5)


def test_a_session_may_say_that_a_batch_pays(
    tiny_bundle: Path, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bound, "ONE_BY_ONE", 1)
    monkeypatch.setattr(OnnxRuntimeSession, "batch_pays", True)
    with telecine.load(tiny_bundle) as pipe:
        pipe.generate(**REQUEST)
    assert batches == [6, 4, 4]
