"""What the stages of a run of LTX-Video take in memory, and what `memory_limit` makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from telecine.condition import Condition
from telecine.conditioning import PREFIX_LATENT_FRAMES
from telecine.families.base import Models
from telecine.families.ltx_video.host import Host
from telecine.families.needs import denoising_need, text_needs
from telecine.families.vae_memory import VaeMemory
from telecine.guidance import Guidance
from telecine.memory_budget import FLOAT, Need
from telecine.request import Request
from telecine.shapes import LatentShape
from telecine.tiling import Plan, TilingOptions


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunMemory:
    """A run within its `memory_limit`: its stages in their order, how the VAE is run, and whether the limit asks for
    the passes of guidance one after the other."""

    needs: tuple[Need, ...]
    tiling: TilingOptions
    decoding: Plan
    one_by_one: bool

    @classmethod
    def plan(
        cls,
        models: Models,
        request: Request,
        host: Host,
        latent: LatentShape,
        guidance: Guidance,
        beside: Sequence[Need] = (),
    ) -> RunMemory:
        """For `latent` latents a video. `beside`: other stages that the limit must be enough for.

        Raises:
            RequestError: a limit that cannot be met, or tiles that cannot be.
            EngineError: an engine takes no such tiles, or there is none.
        """
        conditions = _Conditions.of(request, latent)
        host_bytes = _host_bytes(request, host, latent, guidance, conditions)
        text = text_needs(models, request, host_bytes)
        denoising, one_by_one = denoising_need(
            models, request, tokens=latent.tokens, beside=conditions.extra_tokens, passes=len(guidance.passes),
            host_bytes=host_bytes,
        )  # fmt: skip
        least = max(need.least for need in (*text, denoising, *beside))
        encoded = dataclasses.replace(latent, frames=conditions.encoded) if conditions.encoded else None
        vae = VaeMemory.plan(models, request, host, host_bytes, least, encoded=encoded, decoded=latent)
        return cls(
            needs=(*text, *vae.encoding, denoising, *vae.decoder),
            tiling=vae.options,
            decoding=vae.decoding,
            one_by_one=one_by_one,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conditions:
    """Latent frames of a condition that is encoded at a time (0: none is), and tokens that conditions add, at most."""

    encoded: int
    extra_tokens: int

    @classmethod
    def of(cls, request: Request, latent: LatentShape) -> _Conditions:
        given = [] if request.conditions is None else request.conditions
        conditions = [given] if isinstance(given, Condition) else list(given)
        videos = any(getattr(each, "video", None) is not None for each in conditions)
        encoded = latent.frames if videos else int(request.image is not None or bool(conditions))
        frames = PREFIX_LATENT_FRAMES if videos else 1
        return cls(encoded=encoded, extra_tokens=len(conditions) * frames * latent.height * latent.width)


def _host_bytes(request: Request, host: Host, latent: LatentShape, guidance: Guidance, conditions: _Conditions) -> int:
    """Arrays that live through most of a run: embeddings twice, latents and velocities of all passes and of a step,
    pixels of conditions."""
    passes, videos = len(guidance.passes), request.videos
    texts = 2 * passes * videos * request.max_sequence_length * host.text_channels
    tokens = (2 * passes + 4) * videos * (latent.tokens + conditions.extra_tokens) * host.latent_channels
    video = dataclasses.replace(latent, frames=max(conditions.encoded, 1)).video(host.grid)
    pixels = bool(conditions.encoded) * video.num_frames * video.height * video.width * 3
    return (texts + tokens + pixels) * FLOAT
