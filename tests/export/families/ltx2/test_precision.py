"""What lower precisions cost LTX-2's frames and sound, next to float32 and to what diffusers loses at the same dtype.

The networks are tiny and random: guidance makes more of their rounding errors than of a trained model's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import LTX2Pipeline

from telecine.bundle import Bundle
from telecine.cli import main
from telecine.picture_quality import Clip, psnr
from telecine.pipeline import Pipeline
from telecine_export.families.ltx2.precision import POLICIES, REQUEST, TRIAL, calibration
from telecine_export.precision.gate import FLOORS, Judge
from telecine_export.precision.sound_picture import sound_picture
from telecine_export.precision.trial_models import TrialModels

Ltx2 = Callable[[str], tuple[Path, Path, Path]]
Precisions = Callable[..., Path]
SOUND = ("audio_vae_decoder", "vocoder")
LOWERED = ("text_encoder", "connectors", "transformer", "vae_encoder", "vae_decoder", "latent_upsampler")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
SMALL = {
    **REQUEST, "height": 64, "num_frames": 9, "num_inference_steps": 4, "use_cross_timestep": True,
    "spatio_temporal_guidance_blocks": [1],
}  # fmt: skip


@pytest.fixture(scope="module")
def judges(ltx2: Ltx2) -> Callable[[str], Judge]:
    """Of a style's bundle at float32, whose runs are made once."""
    made: dict[str, Judge] = {}

    def get(style: str) -> Judge:
        if style not in made:
            made[style] = Judge(Bundle.open(ltx2(style)[2]), TRIAL)
        return made[style]

    return get


@pytest.mark.parametrize(
    ("style", "precision"),
    [
        ("2.3", "fp8"),
        *(pytest.param("2.3", each, marks=pytest.mark.slow) for each in DTYPES),
        *(pytest.param("2.0", each, marks=pytest.mark.slow) for each in FLOORS),
    ],
)
def test_the_gate_s_runs(
    style: str, precision: str, judges: Callable[[str], Judge], ltx2_precisions: Precisions,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    """Text to video, image to video through the encoder, an upscaled one, and two sounds, as rounded as on a GPU."""
    found = judges(style).compare(Bundle.open(ltx2_precisions(precision, style)), LOWERED)
    record_property("measured", f"tiny LTX-{style} at {precision}: {found.psnr:.1f} dB next to float32")
    assert FLOORS[precision] <= found.psnr < 100
    assert not found.broken


def test_clips_are_frames_and_then_sounds(ltx2: Ltx2) -> None:
    """Of both runs and an upscaled one, which is silent; a sound is one frame of stereo spectra."""
    with Pipeline(TrialModels(Bundle.open(ltx2("2.3")[2]))) as pipe:
        *frames, first, second = TRIAL.clips(pipe, {**REQUEST, "num_inference_steps": 2})
    assert [clip.shape for clip in frames] == [(17, 96, 96, 3), (9, 96, 96, 3), (9, 192, 192, 3)]
    assert first.shape[-2:] == second.shape[-2:] == (257, 2)
    assert first.shape[1] > second.shape[1] > 50
    assert min(first.std(), second.std()) > 0.05


def test_the_sound_s_networks_are_float32_in_every_bundle(ltx2_precisions: Precisions) -> None:
    components = Bundle.open(ltx2_precisions("fp8", "2.3")).manifest.components
    precisions = {name: part.precision for name, part in components.items()}
    expected = {
        **dict.fromkeys(LOWERED, "fp16"), **dict.fromkeys(SOUND, "fp32"), "uint8_frames": "fp32",
        "text_encoder": "fp8", "transformer": "fp8",
    }  # fmt: skip
    assert precisions == expected
    assert components.keys() <= POLICIES.keys()


def test_calibration_ends_at_the_latents_of_every_style(ltx2: Ltx2) -> None:
    for style in ("2.3", "2.0"):
        if style == "2.0":
            host = {"perturbed_attention": False, "transformer_blocks": 48}
        else:
            host = Bundle.open(ltx2(style)[2]).manifest.host
        asked = calibration(host)
        assert [(each["height"], each["width"], each["num_frames"]) for each in asked] == [(96, 96, 17), (64, 160, 9)]
        assert {each["output_type"] for each in asked} == {"latent"}
        assert {each["use_cross_timestep"] for each in asked} == {style == "2.3"}
        (block,) = asked[0]["spatio_temporal_guidance_blocks"]
        assert block == (28 if style == "2.0" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("precision", DTYPES)
def test_no_more_is_lost_than_in_diffusers(
    precision: str, ltx2: Ltx2, ltx2_precisions: Precisions, record_property: Callable[[str, object], None]
) -> None:
    """DESIGN's bound: at most 1 dB below what diffusers has at that dtype, of frames and of the sound."""
    source, _, exact = ltx2("2.3")
    theirs = _losses(_diffusers(source, DTYPES[precision]), _diffusers(source, torch.float32))
    made = _ours(TrialModels(
        Bundle.open(exact), candidate=Bundle.open(ltx2_precisions(precision, "2.3")), candidates=LOWERED, as_gpu=True
    ))  # fmt: skip
    ours = _losses(made, _ours(TrialModels(Bundle.open(exact))))
    for what, our, their in zip(("frames", "sound"), ours, theirs, strict=True):
        told = f"tiny LTX-2.3 at {precision}, {what}: telecine {our:.1f} dB, diffusers {their:.1f} dB"
        record_property("measured", told)
        assert our >= their - 1, told
        assert 10 < their < 200, told


def _losses(made: tuple[Clip, Clip], exact: tuple[Clip, Clip]) -> list[float]:
    return [psnr(one, other) for one, other in zip(made, exact, strict=True)]


def _diffusers(source: Path, dtype: torch.dtype) -> tuple[Clip, Clip]:
    pipe: Any = LTX2Pipeline.from_pretrained(source, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    request = {name: value for name, value in SMALL.items() if name != "seed"}
    generator = torch.Generator("cpu").manual_seed(SMALL["seed"])
    video, audio = pipe(**request, generator=generator, return_dict=False)
    return np.asarray(video[0], np.float32), sound_picture(audio[0].float().numpy())


def _ours(models: TrialModels) -> tuple[Clip, Clip]:
    with Pipeline(models) as pipe:
        made = pipe.generate(**SMALL, pipeline="LTX2Pipeline")
    assert made.frames is not None
    assert made.audio is not None
    return made.frames[0], sound_picture(made.audio[0])


def export(source: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", str(source), *(str(each) for each in arguments)])


@pytest.mark.slow
def test_an_export_by_component_passes_the_gate(ltx2: Ltx2, tmp_path: Path) -> None:
    """Calibration, gate and all, on the command line."""
    source, upscaler, exact = ltx2("2.3")
    own = {"connectors": "bf16", "text_encoder": "fp16", "vae_encoder": "fp32"}
    chosen = [each for name, precision in own.items() for each in ("--component", f"{name}={precision}")]
    options = ("--precision", "fp8", "--upscaler", upscaler, "--reference", exact)
    result = export(source, tmp_path / "bundle", *options, *chosen)
    assert result.exit_code == 0, result.output
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert {name: manifest.components[name].precision for name in own} == own
    assert manifest.components["transformer"].precision == "fp8"
    quality = manifest.quality
    assert quality.measured
    assert quality.psnr is not None
    assert quality.psnr >= quality.floor == FLOORS["fp8"]
    assert quality.components.keys() == {*LOWERED} - {"vae_encoder"}


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("vocoder=fp16", "16 bits"),
        ("audio_vae_decoder=bf16", "16 bits"),
        ("connectors=fp8", "once a prompt"),
        ("vae_decoder=fp8", "no FP8 kernels"),
    ],
)
def test_what_a_component_does_not_have_is_refused(asked: str, reason: str, ltx2: Ltx2, tmp_path: Path) -> None:
    result = export(ltx2("2.3")[0], tmp_path / "bundle", "--precision", "fp16", "--component", asked)
    assert result.exit_code == 1
    assert reason in str(result.exception) + result.output
    assert not list(tmp_path.iterdir())
