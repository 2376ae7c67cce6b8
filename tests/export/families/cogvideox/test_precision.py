"""What lower precisions cost CogVideoX, next to float32 and to what diffusers loses at the same dtype.

The networks are tiny and random: guidance at 6 makes more of their rounding errors than of a trained model's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline
from onnx_ir import load as load_graph

from telecine.bundle import Bundle
from telecine.picture_quality import Clip, psnr
from telecine.pipeline import Pipeline
from telecine_export.families.cogvideox.precision import REQUEST, TRIAL, calibration
from telecine_export.precision.gate import FLOORS, Judge
from telecine_export.precision.trial_models import TrialModels
from telecine_export.source import open_source
from telecine_export.verify import verify_bundle

CogVideoX = Callable[[str], tuple[Path, Path]]
PARTS = ("text_encoder", "transformer", "vae_encoder", "vae_decoder")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
SMALL = {**REQUEST, "height": 48, "width": 64, "num_inference_steps": 4}


@pytest.fixture(scope="module")
def judge(cogvideox_precisions: Callable[[str], Path]) -> Judge:
    return Judge(Bundle.open(cogvideox_precisions("fp32")), TRIAL)


@pytest.mark.parametrize(("precision", "floor"), [("fp16", FLOORS["fp16"]), ("bf16", FLOORS["bf16"]), ("fp8", 20.0)])
def test_the_gate_s_runs(
    precision: str, floor: float, judge: Judge, cogvideox_precisions: Callable[[str], Path],
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    """Text to video, and video to video through the encoder, as rounded as on a GPU."""
    found = judge.compare(Bundle.open(cogvideox_precisions(precision)), PARTS)
    record_property("measured", f"tiny CogVideoX at {precision}: {found.psnr:.1f} dB next to float32")
    assert floor <= found.psnr < 100
    assert not found.broken


def test_calibration_s_sizes_and_images_are_the_model_s(cogvideox: CogVideoX) -> None:
    asked = {style: calibration(Bundle.open(cogvideox(style)[1]).manifest.host) for style in ("2b", "5b-I2V")}
    assert [(each["height"], each["width"], each["num_frames"]) for each in asked["2b"]] == [(96, 96, 17), (64, 160, 9)]
    (only,) = asked["5b-I2V"]  # its table of positions is of one size
    assert (only["height"], only["width"], only["num_frames"], only["image"].shape) == (64, 96, 9, (64, 96, 3))


def test_a_model_of_images_is_tried_on_one(cogvideox: CogVideoX) -> None:
    with Pipeline(TrialModels(Bundle.open(cogvideox("5b-I2V")[1]))) as pipe:
        (clip,) = TRIAL.clips(pipe, {**REQUEST, "num_inference_steps": 1})
    assert clip.shape == (9, 64, 96, 3)


@pytest.mark.parametrize("precision", DTYPES)
def test_no_more_is_lost_than_in_diffusers(
    precision: str, cogvideox: CogVideoX, cogvideox_precisions: Callable[[str], Path],
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    """DESIGN's bound: at most 1 dB below what diffusers has at that dtype."""
    source, exact = cogvideox("2b")
    theirs = psnr(_diffusers(source, DTYPES[precision]), _diffusers(source, torch.float32))
    made = _ours(TrialModels(
        Bundle.open(exact), candidate=Bundle.open(cogvideox_precisions(precision)), candidates=PARTS, as_gpu=True
    ))  # fmt: skip
    ours = psnr(made, _ours(TrialModels(Bundle.open(exact))))
    record_property("measured", f"tiny CogVideoX at {precision}: telecine {ours:.1f} dB, diffusers {theirs:.1f} dB")
    assert ours >= theirs - 1
    assert 10 < theirs < 200


def _diffusers(source: Path, dtype: torch.dtype) -> Clip:
    pipe: Any = CogVideoXPipeline.from_pretrained(source, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    request = {name: value for name, value in SMALL.items() if name != "seed"}
    frames: Clip = pipe(**request, generator=torch.Generator("cpu").manual_seed(SMALL["seed"])).frames[0]
    return np.asarray(frames, np.float32)


def _ours(models: TrialModels) -> Clip:
    with Pipeline(models) as pipe:
        frames = pipe.generate(**SMALL).frames
    assert frames is not None
    clip: Clip = frames[0]
    return clip


def test_a_bundle_below_float32_is_verified(cogvideox: CogVideoX, cogvideox_precisions: Callable[[str], Path]) -> None:
    """Stages that come through its components are held to a PSNR, the others to the bit."""
    stages = ["text_encoder", "transformer", "vae_decoder", "schedule", "positions", "frames"]
    report = verify_bundle(cogvideox_precisions("fp16"), open_source(str(cogvideox("2b")[0])), stages=stages)
    assert report.passed, report
    held = {stage.name: stage.psnr_floor is not None for stage in report.stages}
    assert held == dict.fromkeys(stages, True) | {"schedule": False, "positions": False}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_graphs_of_a_vae_s_half_store_their_weights_once(
    precision: str, cogvideox_precisions: Callable[[str], Path]
) -> None:
    """Whatever a graph needs a weight as: all roles read it in the one type that the file has it in."""
    bundle = Bundle.open(cogvideox_precisions(precision))
    for component in ("vae_encoder", "vae_decoder"):
        stored: dict[str, set[tuple[Any, Any]]] = {}
        for graph in bundle.component(component).graphs.values():
            for name, value in load_graph(bundle.path(graph.file)).graph.initializers.items():
                if "." in name and name.endswith(("weight", "bias")):
                    tensor: Any = value.const_value
                    stored.setdefault(name, set()).add((tensor.dtype, tensor.offset))
        assert stored
        assert {name: len(places) for name, places in stored.items() if len(places) > 1} == {}
