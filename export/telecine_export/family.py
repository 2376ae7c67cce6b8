"""The families that export knows: a dict from diffusers' pipeline class to what to trace and what to record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from telecine.errors import SourceError
from telecine.shapes import LatentShape
from telecine_export.families.cogvideox import networks as cogvideox
from telecine_export.families.cogvideox import precision as cogvideox_precision
from telecine_export.families.cogvideox import step as cogvideox_step
from telecine_export.families.ltx2 import networks as ltx2
from telecine_export.families.ltx2 import precision as ltx2_precision
from telecine_export.families.ltx2 import step as ltx2_step
from telecine_export.families.ltx_video import networks as ltx_video
from telecine_export.families.ltx_video import precision as ltx_video_precision
from telecine_export.families.ltx_video import step as ltx_video_step
from telecine_export.families.upscaler import UPSCALERS
from telecine_export.graphs import GraphSpec, StepCall
from telecine_export.precision.policy import Policy
from telecine_export.precision.trial import Trial
from telecine_export.source import Source
from telecine_export.tokenizer import GEMMA, T5, TokenizerKind


class StepCallOf(Protocol):
    """Of a transformer's configuration."""

    def __call__(self, config: Mapping[str, Any], latent: LatentShape, *, batch: int, text_length: int) -> StepCall: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What export needs to know of a family; each function reads a source's configurations.

    `policies` are by component: what of it stays in higher precision. `trial` is what precision is tried on;
    `step_call` what operations are counted of. `tokenizer` is its text encoder's.
    """

    name: str
    graphs: Callable[[Source], list[GraphSpec]]
    host: Callable[[Source], dict[str, Any]]
    variant: Callable[[Source], str]
    presets: Callable[[Source], dict[str, dict[str, Any]]]
    policies: Mapping[str, Policy]
    trial: Trial
    step_call: StepCallOf
    tokenizer: TokenizerKind = T5


LTX_VIDEO = Family(
    name="ltx-video",
    graphs=ltx_video.graphs,
    host=ltx_video.host,
    variant=ltx_video.variant,
    presets=ltx_video.presets,
    policies=ltx_video_precision.POLICIES,
    trial=ltx_video_precision.TRIAL,
    step_call=ltx_video_step.step_call,
)

COGVIDEOX = Family(
    name="cogvideox",
    graphs=cogvideox.graphs,
    host=cogvideox.host,
    variant=cogvideox.variant,
    presets=cogvideox.presets,
    policies=cogvideox_precision.POLICIES,
    trial=cogvideox_precision.TRIAL,
    step_call=cogvideox_step.step_call,
)

LTX2 = Family(
    name="ltx-2",
    graphs=ltx2.graphs,
    host=ltx2.host,
    variant=ltx2.variant,
    presets=ltx2.presets,
    policies=ltx2_precision.POLICIES,
    trial=ltx2_precision.TRIAL,
    step_call=ltx2_step.step_call,
    tokenizer=GEMMA,
)

FAMILIES: Mapping[str, Family] = {
    "LTXPipeline": LTX_VIDEO,
    "LTXImageToVideoPipeline": LTX_VIDEO,
    "LTXConditionPipeline": LTX_VIDEO,
    "CogVideoXPipeline": COGVIDEOX,
    "CogVideoXImageToVideoPipeline": COGVIDEOX,
    "CogVideoXVideoToVideoPipeline": COGVIDEOX,
    "LTX2Pipeline": LTX2,
    "LTX2ImageToVideoPipeline": LTX2,
    "LTX2ConditionPipeline": LTX2,
}


def family_of(source: Source) -> Family:
    """
    Raises:
        SourceError: the pipeline class is of no family that telecine exports.
    """
    if source.pipeline_class in {pipeline for pipeline, _ in UPSCALERS.values()}:
        raise SourceError(
            f"{source.root} is a {source.pipeline_class}: an upscaler and its VAE without transformer and text encoder",
            expected="the model that it upscales the latents of",
            fix=f"Run: telecine export MODEL BUNDLE --upscaler {source.root}",
        )
    if source.pipeline_class not in FAMILIES:
        raise SourceError(
            f"{source.root} is a {source.pipeline_class}",
            expected=f"one of {', '.join(FAMILIES)}",
            fix="telecine exports LTX-Video, CogVideoX and LTX-2, so far.",
        )
    return FAMILIES[source.pipeline_class]
