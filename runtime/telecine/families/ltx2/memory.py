"""What the stages of a run of LTX-2 take in memory, and what `memory_limit` makes of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from telecine.families.base import Models
from telecine.families.ltx2.host import Host
from telecine.families.ltx2.request import LTX2Request
from telecine.families.needs import network_need
from telecine.families.vae_memory import VaeMemory
from telecine.guidance import Pass
from telecine.memory_budget import FLOAT, Need
from telecine.shapes import LatentShape
from telecine.tiling import Plan, TilingOptions
from telecine.tiling.memory import COPIES

# Hidden states of all layers: as the layers left them, stacked, and normalised.
STACKS = 3
# Scores of a layer's attention with a mask: ONNX Runtime holds them, what the mask is added to, and their softmax.
SCORES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a run is about: latents of a video, latent frames of keyframes behind it, latent frames of the longest
    condition that is encoded (0: none is), and latents of the sound."""

    latent: LatentShape
    keyframes: int
    encoded: int
    audio_latents: int

    @property
    def tokens(self) -> int:
        """T of the transformer: the keyframes' too."""
        return self.latent.tokens + self.keyframes * self.latent.height * self.latent.width


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunMemory:
    """A run within its `memory_limit`: its stages in their order, and how the VAE is run. Passes of guidance run one
    after the other, whatever the limit."""

    needs: tuple[Need, ...]
    tiling: TilingOptions
    decoding: Plan

    @classmethod
    def plan(
        cls,
        models: Models,
        request: LTX2Request,
        host: Host,
        size: Size,
        passes: Sequence[Pass],
        beside: Sequence[Need] = (),
    ) -> RunMemory:
        """`beside`: other stages that the limit must be enough for.

        Raises:
            RequestError: a limit that cannot be met, or tiles that cannot be.
            EngineError: an engine takes no such tiles, or there is none.
        """
        host_bytes = _host_bytes(request, host, size, passes)
        text = _text(models, request, host, passes, host_bytes)
        rows = request.videos * (size.tokens + size.audio_latents)
        denoising = network_need(models, "transformer", rows, host_bytes)
        sound = () if request.output_type == "latent" else _sound(models, request, host, size, host_bytes)
        least = max(need.least for need in (*text, denoising, *sound, *beside))
        encoded = dataclasses.replace(size.latent, frames=size.encoded) if size.encoded else None
        vae = VaeMemory.plan(models, request, host, host_bytes, least, encoded=encoded, decoded=size.latent)
        return cls(
            needs=(*text, *vae.encoding, denoising, *sound, *vae.decoder),
            tiling=vae.options,
            decoding=vae.decoding,
        )


def _text(
    models: Models, request: LTX2Request, host: Host, passes: Sequence[Pass], host_bytes: int
) -> tuple[Need, ...]:
    """The text encoder, a prompt at a time, where texts are given; and the connectors, a side at a time."""
    length = request.max_sequence_length
    sides = {"positive": request.prompt_embeds, "negative": request.negative_prompt_embeds}
    encodes = any(sides[side] is None for side in sides if side in passes)
    connectors = network_need(models, "connectors", request.prompts * length, host_bytes)
    if not encodes:
        return (connectors,)
    values = STACKS * length * host.text_widest + SCORES * host.text_heads * length**2
    encoding = network_need(models, "text_encoder", length, host_bytes)
    return dataclasses.replace(encoding, activations=encoding.activations + math.ceil(values * FLOAT)), connectors


def _sound(models: Models, request: LTX2Request, host: Host, size: Size, host_bytes: int) -> tuple[Need, ...]:
    latents = request.videos * size.audio_latents
    widest = {
        "audio_vae_decoder": latents * host.audio_widest,
        "vocoder": latents * host.audio_grid.temporal * host.vocoder_widest,
    }
    return tuple(
        Need(
            component=component,
            weights=models.facts(component).weights,
            activations=math.ceil(values * FLOAT * COPIES),
            host=host_bytes,
        )
        for component, values in widest.items()
    )


def _host_bytes(request: LTX2Request, host: Host, size: Size, passes: Sequence[Pass]) -> int:
    """Arrays that live through most of a run: texts of both sides, latents and clean ones of all passes, pixels."""
    texts = 3 * 2 * request.videos * request.max_sequence_length * host.text_channels
    audio_channels = host.audio_grid.channels * host.audio_grid.bands
    latents = size.tokens * host.latent_channels + size.audio_latents * audio_channels
    video = dataclasses.replace(size.latent, frames=max(size.encoded, 1)).video(host.grid)
    pixels = bool(size.encoded) * video.num_frames * video.height * video.width * 3
    return (texts + (3 * len(passes) + 6) * request.videos * latents + pixels) * FLOAT
