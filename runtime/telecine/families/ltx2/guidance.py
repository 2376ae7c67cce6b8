"""Guidance of a video and of its sound: each has scales of its own, and a pass that either needs runs for both.

Predictions are of clean latents here: the spread that a rescaling restores is theirs, not the velocities'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telecine.errors import RequestError
from telecine.families.ltx2.host import Host
from telecine.families.ltx2.modalities import AudioVideo
from telecine.families.ltx2.request import LTX2Request
from telecine.guidance import PASSES, Guidance, Pass, rescale
from telecine.per_step import listed, per_step

Array = npt.NDArray[np.float32]
SCALES = ("guidance_scale", "stg_scale", "modality_scale", "guidance_rescale")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """How far a modality is pushed from each of its weaker predictions; neutral ones are 1, 0, 1 and 0."""

    guidance: float = 1.0
    stg: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0

    def combine(self, given: dict[Pass, Array]) -> Array:
        """(B, ...) clean latents by pass → (B, ...): c + (g - 1)(c - u) + s (c - p) + (m - 1)(c - i), rescaled to c."""
        cond = given["positive"]
        weights: dict[Pass, float] = {
            "negative": self.guidance - 1,
            "perturbed": self.stg,
            "isolated": self.modality - 1,
        }
        guided = cond
        for each, weight in weights.items():
            if each in given:
                delta = np.subtract(cond, given[each], dtype=np.float32)
                delta *= np.float32(weight)
                guided = guided + delta
        return rescale(guided, cond, self.rescale) if self.rescale > 0 else guided


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGuidance:
    """One step's guidance (`telecine.denoise.Guided`) of clean latents.

    Source: diffusers `LTX2Pipeline.__call__`, step 7.
    """

    video: Scales
    audio: Scales
    stg_blocks: tuple[int, ...] = ()

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What the network runs on each video, in the order of `PASSES`."""
        both = (self.video, self.audio)
        needed: dict[Pass, bool] = {
            "negative": any(each.guidance > 1 for each in both),
            "positive": True,
            "perturbed": any(each.stg > 0 for each in both),
            "isolated": any(each.modality > 1 for each in both),
        }
        return tuple(each for each in PASSES if needed[each])

    def combine(self, predictions: AudioVideo) -> AudioVideo:
        """(passes * B, ...) clean latents, in the passes' order → (B, ...)."""
        return AudioVideo(
            *(
                scales.combine(dict(zip(self.passes, np.split(each, len(self.passes)), strict=True)))
                for scales, each in zip((self.video, self.audio), predictions, strict=True)
            )
        )

    def perturbation_mask(self, passes: tuple[Pass, ...], blocks: int, batch: int) -> Array:
        """(blocks, passes * B) the transformer's `perturbation_mask`: 0 where self-attention gives its values alone."""
        mask = np.ones((blocks, len(passes), batch), np.float32)
        if "perturbed" in passes:
            mask[list(self.stg_blocks), passes.index("perturbed")] = 0
        return mask.reshape(blocks, -1)


def modality_mask(passes: tuple[Pass, ...], batch: int) -> Array:
    """(passes * B,) the transformer's `modality_mask`: 0 where video and sound do not attend to each other."""
    return np.repeat(np.array([each != "isolated" for each in passes], np.float32), batch)


def request_guidance(request: LTX2Request, sigmas: npt.NDArray[np.float32], host: Host) -> Guidance[StepGuidance]:
    """The guidance of a run whose steps begin at (N,) sigmas.

    A sound's scale of none or 0 is the video's, as in diffusers. A transformer without perturbed attention (LTX-2.0)
    would predict the same in a perturbed pass: it has none.

    Raises:
        RequestError: a list of another length than the steps or ranges, a block that the model does not have, or
            spatio-temporal guidance without blocks.
    """
    ends = listed(request.guidance_sigmas) or []
    video, audio = {}, {}
    for name in SCALES:
        video[name] = per_step(name, getattr(request, name), sigmas, ends)
        own = per_step(f"audio_{name}", getattr(request, f"audio_{name}"), sigmas, ends)
        audio[name] = [of_audio or of_video for of_audio, of_video in zip(own, video[name], strict=True)]
    if not host.perturbed_attention:
        video["stg_scale"] = audio["stg_scale"] = [0.0] * len(sigmas)
    stg_blocks = tuple(request.spatio_temporal_guidance_blocks or ())
    steps = tuple(
        StepGuidance(video=_scales(video, step), audio=_scales(audio, step), stg_blocks=stg_blocks)
        for step in range(len(sigmas))
    )
    _check_blocks(stg_blocks, host.transformer_blocks, perturbed=any("perturbed" in step.passes for step in steps))
    return Guidance(steps)


def _scales(of: dict[str, list[float]], step: int) -> Scales:
    guidance, stg, modality, rescaling = (float(of[name][step]) for name in SCALES)
    return Scales(guidance=guidance, stg=stg, modality=modality, rescale=rescaling)


def _check_blocks(stg_blocks: tuple[int, ...], blocks: int, *, perturbed: bool) -> None:
    if perturbed and not stg_blocks:
        raise RequestError(
            "stg_scale or audio_stg_scale without spatio_temporal_guidance_blocks",
            expected="the blocks that spatio-temporal guidance perturbs",
            fix="Pass spatio_temporal_guidance_blocks=[28] (LTX-2.3), or stg_scale=0 and audio_stg_scale=0.",
        )
    unknown = sorted({block for block in stg_blocks if not 0 <= block < blocks})
    if perturbed and unknown:
        raise RequestError(
            f"spatio_temporal_guidance_blocks has {', '.join(map(str, unknown))}",
            expected=f"indexes from 0 to {blocks - 1}: the model has {blocks} blocks",
            fix="Count blocks from 0, forwards.",
        )
