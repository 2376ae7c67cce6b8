"""What the stages of a run of LTX-Video take in memory, and what `memory_limit` makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from telecine.condition import Condition
from telecine.conditioning import PREFIX_LATENT_FRAMES
from telecine.families.base import Models
from telecine.families.bound import ONE_BY_ONE
from telecine.families.ltx_video.host import Host
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
        options = request.tiling_options()
        conditions = _Conditions.of(request, latent)
        host_bytes = _host_bytes(request, host, latent, guidance, conditions)
        text = _text(models, request, host_bytes)
        batched, sequential = (
            _transformer(models, request, latent.tokens + conditions.extra_tokens, passes, host_bytes)
            for passes in (len(guidance.passes), 1)
        )
        limit = options.memory_limit
        one_by_one = limit is not None and batched.alone > limit
        large = request.videos * latent.tokens >= ONE_BY_ONE
        denoising = sequential if one_by_one or (large and not models.facts("transformer").batch_pays) else batched
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


def _text(models: Models, request: Request, host_bytes: int) -> tuple[Need, ...]:
    """Of the text encoder, one call for the prompts and one for the negative ones; none where embeddings are given."""
    if request.prompt_embeds is not None and request.negative_prompt_embeds is not None:
        return ()
    rows, facts = request.prompts * request.max_sequence_length, models.facts("text_encoder")
    need = Need(
        component="text_encoder",
        weights=facts.weights,
        streams=facts.streams,
        activations=models.activation_bytes("text_encoder", rows),
        host=host_bytes,
    )
    return (need,)


def _transformer(models: Models, request: Request, tokens: int, passes: int, host_bytes: int) -> Need:
    """With so many passes at once."""
    rows, facts = passes * request.videos * tokens, models.facts("transformer")
    return Need(
        component="transformer",
        weights=facts.weights,
        streams=facts.streams,
        activations=models.activation_bytes("transformer", rows),
        host=host_bytes,
    )


def _host_bytes(request: Request, host: Host, latent: LatentShape, guidance: Guidance, conditions: _Conditions) -> int:
    """Arrays that live through most of a run: embeddings twice, latents and velocities of all passes and of a step,
    pixels of conditions."""
    passes, videos = len(guidance.passes), request.videos
    texts = 2 * passes * videos * request.max_sequence_length * host.text_channels
    tokens = (2 * passes + 4) * videos * (latent.tokens + conditions.extra_tokens) * host.latent_channels
    video = dataclasses.replace(latent, frames=max(conditions.encoded, 1)).video(host.grid)
    pixels = bool(conditions.encoded) * video.num_frames * video.height * video.width * 3
    return (texts + tokens + pixels) * FLOAT
