"""LoRA on TensorRT, through the doubles: ONNX Runtime's frames with it, and the engine's own bits after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lora_files
import numpy as np
import pytest
from doubles.plans import write_plan

import telecine
from telecine.bundle import Bundle

SMALL: dict[str, Any] = {
    "prompt": "a red ball", "height": 64, "width": 32, "num_frames": 9, "num_inference_steps": 2, "seed": 0,
    "guidance_scale": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("stripped", [False, True])
def test_there_and_back(tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], stripped: bool) -> None:
    tensorrt()
    bundle = Bundle.open(tiny_bundle)
    for component in ("text_encoder", "transformer", "vae_decoder"):
        write_plan(bundle, component, engines=tmp_path, refit=True, stripped=stripped)
    lora = lora_files.write_lora(tmp_path / "a.safetensors", lora_files.factors(tiny_bundle, seed=0, rank=2))
    with (
        telecine.load(tiny_bundle, backend="tensorrt", engines=tmp_path) as pipe,
        telecine.load(tiny_bundle, backend="onnxruntime") as reference,
    ):
        own = pipe.generate(**SMALL).frames
        for each in (pipe, reference):
            each.load_lora(lora)
        changed = pipe.generate(**SMALL).frames
        # Both hand the same weights to ONNX Runtime, in a file's place and in the graph: the bits were the same.
        np.testing.assert_allclose(changed, reference.generate(**SMALL).frames, rtol=0, atol=1e-6)
        assert np.abs(changed - own).max() > 0.01
        pipe.unload_lora()
        np.testing.assert_array_equal(pipe.generate(**SMALL).frames, own)
