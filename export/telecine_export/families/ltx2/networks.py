"""LTX-2.0 and 2.3: their graphs, and the configuration that their host math needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.pipelines.ltx2.utils import DEFAULT_NEGATIVE_PROMPT

from telecine.errors import SourceError
from telecine.families.ltx2.schedule import DISTILLED_SIGMAS
from telecine.schedulers.flow_match_euler import FlowMatchEulerConfig
from telecine_export.families.ltx2 import connectors, gemma, sound, transformer, upsampler, vae
from telecine_export.families.ltx2.checks import RATIO
from telecine_export.families.weightless import uint8_frames
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source

AUDIO_SCHEDULER = "audio_scheduler"


def graphs(source: Source) -> list[GraphSpec]:
    """The graphs of a pipeline: text, transformer, both VAEs, vocoder, an upsampler where one is given, host math.

    Raises:
        SourceError: a configuration that the graph contracts do not cover, or parts of different models.
    """
    specs = [
        gemma.spec(source),
        connectors.spec(source),
        transformer.spec(source),
        vae.encoder_spec(source),
        vae.decoder_spec(source),
        sound.audio_vae_decoder_spec(source),
        sound.vocoder_spec(source),
    ]
    check_parts(source)
    if upsampler.COMPONENT in source.components:
        specs.append(upsampler.spec(source))
    return [*specs, uint8_frames()]


def check_parts(source: Source) -> None:
    """Refuse parts of different models: each would export, and together they would make noise.

    Raises:
        SourceError: the transformer takes other latents than the VAEs', or other texts than the connectors'.
    """
    config, of_connectors = transformer.transformer_config(source), gemma.connectors_config(source)
    of_sound = sound.audio_vae_config(source)
    values = of_sound["latent_channels"] * of_sound["mel_bins"] // RATIO
    text, audio_text = transformer.text_widths(config)
    checks = (
        ("vae", "channels", config["in_channels"], vae.vae_config(source)["latent_channels"]),
        ("audio_vae", "values", config["audio_in_channels"], values),
        ("connectors", "channels for the video", text, connectors.width(of_connectors, "video")),
        ("connectors", "channels for the sound", audio_text, connectors.width(of_connectors, "audio")),
    )
    for part, what, wanted, got in checks:
        if got != wanted:
            raise SourceError(
                f"{source.component(part).origin} makes {got} {what}, and"
                f" {source.component('transformer').origin} takes {wanted}",
                expected="a transformer, VAEs and connectors of one model",
                fix="Check what is passed as --transformer and --vae.",
            )


def host(source: Source) -> dict[str, Any]:
    """What the NumPy side needs: ratios, statistics, schedules, and RoPE frequencies as torch computed them.

    Raises:
        BundleError: a scheduler that the runtime does not have.
    """
    config, of_connectors = transformer.transformer_config(source), gemma.connectors_config(source)
    of_video, of_sound = vae.host(source), sound.host(source)
    schedulers = {"scheduler": source.config("scheduler"), AUDIO_SCHEDULER: _audio_scheduler(source)}
    for scheduler in filter(None, schedulers.values()):
        FlowMatchEulerConfig.from_dict(scheduler)
    stacked = of_connectors["caption_channels"] * of_connectors["text_proj_in_factor"]
    widest = {**of_video["widest_activations"], **of_sound["widest_activations"], "text_encoder": stacked}
    factors = upsampler.host(source) if upsampler.COMPONENT in source.components else None
    return {
        **of_video,
        **of_sound,
        "widest_activations": widest,
        "text_channels": sum(gemma.feature_widths(of_connectors)),
        "text_heads": gemma.text_config(source).num_attention_heads,
        "connectors": connectors.host(of_connectors),
        "transformer_blocks": config["num_layers"],
        "perturbed_attention": config["perturbed_attn"],
        "rope": transformer.rope(config),
        **schedulers,
        **({"upsampler": factors} if factors else {}),
    }


def _audio_scheduler(source: Source) -> dict[str, Any] | None:
    """The sound's own scheduler, which `LTX2ConditionPipeline` may have."""
    if not source.component(AUDIO_SCHEDULER).origin.exists():
        return None
    return source.config(AUDIO_SCHEDULER)


def variant(source: Source) -> str:
    """The release with this architecture: 2.0 or 2.3, told from the configuration and never from a file name."""
    return "2.3" if transformer.transformer_config(source)["perturbed_attn"] else "2.0"


# What diffusers' documentation recommends, which are Lightricks' constants.
_SIZE: Mapping[str, Any] = {"width": 768, "height": 512, "num_frames": 121, "frame_rate": 24.0}
_GUIDED: Mapping[str, Any] = {
    "negative_prompt": DEFAULT_NEGATIVE_PROMPT, "guidance_scale": 3.0, "stg_scale": 1.0, "modality_scale": 3.0,
    "guidance_rescale": 0.7, "audio_guidance_scale": 7.0, "audio_stg_scale": 1.0, "audio_modality_scale": 3.0,
    "audio_guidance_rescale": 0.7,
}  # fmt: skip
RECOMMENDED: Mapping[str, Mapping[str, Any]] = {
    # Blocks of 2.0 have no perturbed attention, and each modality's own timestep.
    "2.0": {**_SIZE, **_GUIDED, "num_inference_steps": 40, "stg_scale": 0.0, "audio_stg_scale": 0.0,
            "use_cross_timestep": False},
    "2.3": {**_SIZE, **_GUIDED, "num_inference_steps": 30, "spatio_temporal_guidance_blocks": [28]},
}  # fmt: skip
DISTILLED: Mapping[str, Any] = {
    **_SIZE, "sigmas": list(DISTILLED_SIGMAS), "guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0,
    "guidance_rescale": 0.0, "audio_guidance_scale": 1.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0,
    "audio_guidance_rescale": 0.0,
}  # fmt: skip
TWO_STAGE_SIZE: Mapping[str, Any] = {"width": 1536, "height": 1024}


def presets(source: Source) -> dict[str, dict[str, Any]]:
    """Named settings of `generate`: what diffusers' documentation recommends.

    Distilled models are published with a static scheduler: "recommended" is "distilled" there. Blocks of "recommended"
    are those of the published models: one with fewer has none.
    """
    release = variant(source)
    config = transformer.transformer_config(source)
    own = {} if release == "2.3" else {"use_cross_timestep": False}
    guided, distilled = dict(RECOMMENDED[release]), {**DISTILLED, **own}
    if max(guided.get("spatio_temporal_guidance_blocks", [0])) >= config["num_layers"]:
        guided |= {"stg_scale": 0.0, "audio_stg_scale": 0.0}
        del guided["spatio_temporal_guidance_blocks"]
    static = not source.config("scheduler").get("use_dynamic_shifting", False)
    named = {"recommended": distilled if static else guided, "distilled": distilled}
    if upsampler.COMPONENT in source.components and upsampler.doubles_sides(source):
        named["two-stage"] = {**named["recommended"], **TWO_STAGE_SIZE, "second_stage": {}}
        named["two-stage-distilled"] = {**distilled, **TWO_STAGE_SIZE, "second_stage": {}}
    return {name: dict(values) for name, values in named.items()}
