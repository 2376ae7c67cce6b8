"""LTX-2's checks: the inputs that each component is compared on, and the torch code that it is compared with.

The references are diffusers' and transformers' own modules: none of the exporter's patches reaches them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from telecine.bundle import Bundle
from telecine.families.ltx2.guidance import modality_mask
from telecine.families.ltx2.host import Host
from telecine.families.ltx2.modalities import Told
from telecine.families.ltx2.positions import rope_inputs
from telecine.families.ltx2.transformer import timestep_inputs
from telecine.guidance import Pass
from telecine.shapes import LatentShape
from telecine_export.families.ltx2 import networks
from telecine_export.families.ltx2.transformer import transformer_config
from telecine_export.source import Source
from telecine_export.verify.checks import Case, FamilyChecks, compare_graph
from telecine_export.verify.comparison import Pair
from telecine_export.verify.ltx2_run import RUN_PARTS, RUN_STAGES, bundle_run, torch_run
from telecine_export.verify.ltx2_text import connectors, normal, text_encoder, tokenizer
from telecine_export.verify.modules import load_module
from telecine_export.verify.weightless import WEIGHTLESS

# (latent shape, audio latents, text length, videos, frame rate, tokens held at the front, pass, use_cross_timestep):
# traced at 2 x 24 tokens, 9 of sound, a text of 7, 5 rope positions.
VIDEOS: tuple[tuple[LatentShape, int, int, int, float, int, Pass, bool], ...] = (
    (LatentShape(frames=1, height=3, width=7), 4, 11, 1, 25.0, 0, "positive", True),
    (LatentShape(frames=3, height=2, width=5), 11, 19, 2, 24.0, 10, "positive", False),
    (LatentShape(frames=9, height=3, width=2), 31, 5, 1, 30.0, 6, "positive", True),
    (LatentShape(frames=2, height=4, width=3), 7, 16, 3, 24.0, 0, "isolated", True),
    (LatentShape(frames=2, height=3, width=4), 13, 8, 2, 24.0, 3, "perturbed", True),
)
TIMESTEP, AUDIO_TIMESTEP = 731.5, 402.25
# (batch, frames, height, width) in latents; a decoder that pads by reflection takes at least 2 a side.
ENCODED = ((1, 1, 3, 1), (3, 2, 1, 4), (2, 4, 3, 2))
DECODED = ((1, 1, 3, 2), (3, 2, 2, 4), (2, 4, 2, 3))
UPSAMPLED = ((1, 1, 3, 2), (3, 2, 1, 4), (2, 4, 2, 3))
# (batch, latents of sound, or mel frames).
HEARD = ((1, 2), (3, 5), (2, 26))
VOICED = ((1, 5), (3, 17), (2, 101))
SEED = 0


def transformer(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, T, C) and (B, S, C') velocities: a timestep a video and one a token, whole, isolated and perturbed passes."""
    return compare_graph(
        bundle,
        "transformer",
        _transformer_cases(bundle, source),
        load=lambda: load_module(source, "transformer"),
        reference=_velocities,
    )


def _transformer_cases(bundle: Bundle, source: Source) -> list[Case]:
    config, host = transformer_config(source), Host.parse(networks.host(source))
    inputs = {spec.name: spec for spec in bundle.graph("transformer", "main").inputs}
    random = np.random.default_rng(SEED)
    cases = []
    for latent, audio, length, batch, frame_rate, held, each, across in VIDEOS:
        if each == "perturbed" and not host.perturbed_attention:
            continue
        timesteps = np.full(latent.tokens if held else 1, TIMESTEP, np.float32)
        timesteps[:held] = np.linspace(0, 300, held)
        told = Told(
            timesteps=timesteps, timestep=np.float32(TIMESTEP), audio_timestep=np.float32(AUDIO_TIMESTEP),
            sigma=np.float32(1), audio_sigma=np.float32(1),
        )  # fmt: skip
        perturbation = np.ones((config["num_layers"], batch), np.float32)
        perturbation[-1] = each != "perturbed"
        sizes: dict[Any, int] = {"batch": batch, "tokens": latent.tokens, "audio_tokens": audio, "text_length": length}
        states = {
            name: normal(random, *(int(sizes.get(size, size)) for size in spec.shape))
            for name, spec in inputs.items()
            if name.endswith("hidden_states")
        }
        feeds = {
            **states,
            **rope_inputs(host.rope, latent, audio, frame_rate),
            **timestep_inputs(told, batch, use_cross_timestep=across),
            "perturbation_mask": perturbation,
            "modality_mask": modality_mask((each,), batch),
        }
        extra = {
            "num_frames": latent.frames, "height": latent.height, "width": latent.width, "fps": frame_rate,
            "audio_num_frames": audio, "isolate_modalities": each == "isolated", "use_cross_timestep": across,
            "spatio_temporal_guidance_blocks": [config["num_layers"] - 1] if each == "perturbed" else None,
        }  # fmt: skip
        size = f"{batch} x {latent.frames} x {latent.height} x {latent.width} latents"
        name = f"{size}, {each}, {'crossed' if across else 'own'} timesteps"
        cases.append(Case(name=name, feeds={name: feed for name, feed in feeds.items() if name in inputs}, extra=extra))
    return cases


def _velocities(model: Any, case: Case) -> tuple[Tensor, Tensor]:
    given = {name: torch.from_numpy(case.feeds[name]) for name in case.feeds if name.endswith("hidden_states")}
    batch, length = given["encoder_hidden_states"].shape[:2]
    sigma, audio_sigma = (torch.full((batch,), value) for value in (TIMESTEP, AUDIO_TIMESTEP))
    video, audio = model(
        **given,
        timestep=torch.from_numpy(case.feeds["timestep"]),
        audio_timestep=audio_sigma,
        sigma=sigma,
        audio_sigma=audio_sigma,
        encoder_attention_mask=torch.ones(batch, length),
        audio_encoder_attention_mask=torch.ones(batch, length),
        return_dict=False,
        **case.extra,
    )
    return video, audio


def vae_encoder(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, C, F, H, W) means of random videos in [-1, 1]."""
    grid = Host.parse(networks.host(source)).grid
    random = np.random.default_rng(SEED)
    cases = []
    for batch, frames, height, width in ENCODED:
        video = LatentShape(frames=frames, height=height, width=width).video(grid)
        size = (batch, 3, video.num_frames, video.height, video.width)
        feeds = {"video": random.uniform(-1, 1, size).astype(np.float32)}
        cases.append(Case(name=f"{batch} x {video.num_frames} x {video.height} x {video.width} pixels", feeds=feeds))
    return compare_graph(
        bundle,
        "vae_encoder",
        cases,
        load=lambda: load_module(source, "vae"),
        reference=lambda vae, case: vae.encode(torch.from_numpy(case.feeds["video"])).latent_dist.mode(),
    )


def vae_decoder(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, 3, num_frames, height, width) videos of random latents, with another timestep for each where it has one."""
    host = Host.parse(networks.host(source))
    random = np.random.default_rng(SEED)
    cases = []
    for batch, *latents in DECODED:
        feeds = {"latents": normal(random, batch, host.latent_channels, *latents)}
        if host.timestep_conditioning:
            feeds["timestep"] = np.linspace(0.05, 0.0, batch, dtype=np.float32)
        cases.append(Case(name=f"{batch} x {' x '.join(map(str, latents))} latents", feeds=feeds))

    def decode(vae: Any, case: Case) -> Tensor:
        timestep = torch.from_numpy(case.feeds["timestep"]) if "timestep" in case.feeds else None
        video: Tensor = vae.decode(torch.from_numpy(case.feeds["latents"]), timestep).sample
        return video

    return compare_graph(bundle, "vae_decoder", cases, load=lambda: load_module(source, "vae"), reference=decode)


def audio_vae_decoder(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, channels, frames, bins) mel spectrograms of random latents."""
    grid = Host.parse(networks.host(source)).audio_grid
    cases = _random_cases("latents", "latents of sound", HEARD, (grid.channels, grid.bands))
    return compare_graph(
        bundle,
        "audio_vae_decoder",
        cases,
        load=lambda: load_module(source, "audio_vae"),
        reference=lambda vae, case: vae.decode(torch.from_numpy(case.feeds["latents"])).sample,
    )


def vocoder(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, channels, samples) of random mel spectrograms."""
    (mel,) = bundle.graph("vocoder", "main").inputs
    channels, bins = mel.shape[1], mel.shape[3]
    assert isinstance(channels, int)
    assert isinstance(bins, int)
    return compare_graph(
        bundle,
        "vocoder",
        _random_cases(mel.name, "mel frames", VOICED, (channels, bins)),
        load=lambda: load_module(source, "vocoder"),
        reference=lambda vocoder, case: vocoder(torch.from_numpy(case.feeds[mel.name])),
    )


def _random_cases(name: str, what: str, sizes: tuple[tuple[int, int], ...], sides: tuple[int, int]) -> list[Case]:
    """(B, channels, L, width) random values of each batch and length; `sides` are channels and width."""
    random = np.random.default_rng(SEED)
    channels, width = sides
    return [
        Case(name=f"{batch} x {length} {what}", feeds={name: normal(random, batch, channels, length, width)})
        for batch, length in sizes
    ]


def latent_upsampler(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, C, F, H, W) upsampled latents of random ones."""
    channels = Host.parse(networks.host(source)).latent_channels
    random = np.random.default_rng(SEED)
    cases = [
        Case(
            name=f"{batch} x {' x '.join(map(str, latents))} latents",
            feeds={"latents": normal(random, batch, channels, *latents)},
        )
        for batch, *latents in UPSAMPLED
    ]
    return compare_graph(
        bundle,
        "latent_upsampler",
        cases,
        load=lambda: load_module(source, "latent_upsampler"),
        reference=lambda upsampler, case: upsampler(torch.from_numpy(case.feeds["latents"])),
    )


# In the order in which a divergence spreads.
COMPONENTS = {
    "tokenizer": tokenizer,
    "text_encoder": text_encoder,
    "connectors": connectors,
    "transformer": transformer,
    "vae_encoder": vae_encoder,
    "vae_decoder": vae_decoder,
    "audio_vae_decoder": audio_vae_decoder,
    "vocoder": vocoder,
    "latent_upsampler": latent_upsampler,
    "uint8_frames": WEIGHTLESS["uint8_frames"],
}

LTX2 = FamilyChecks(
    components=COMPONENTS,
    run_stages=RUN_STAGES,
    run_parts=RUN_PARTS,
    bundle_run=bundle_run,
    torch_run=torch_run,
    optional=("latent_upsampler",),
)
