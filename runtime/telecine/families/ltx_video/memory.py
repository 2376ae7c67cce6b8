"""What the stages of a run of LTX-Video take in memory, and what `memory_limit` makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from telecine.condition import Condition
from telecine.conditioning import PREFIX_LATENT_FRAMES
from telecine.families.base import Models
from telecine.families.ltx_video.decode import largest_tile
from telecine.families.ltx_video.host import Host
from telecine.families.ltx_video.transformer import ONE_BY_ONE
from telecine.guidance import Guidance
from telecine.memory_budget import FLOAT, Need, check_limit
from telecine.request import Request
from telecine.shapes import LatentShape
from telecine.tiling import Plan, TilingOptions, plan_decoder, plan_encoder
from telecine.upscale_request import UpscaleRequest


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
        vae = _Vae.of(models, request, host, latent, host_bytes, least, encodes=conditions.encoded > 0)
        encoding = vae.encoder(models, latent, conditions.encoded)
        decoding, decoder = vae.decoder(models, latent)
        check_limit(limit, least)
        return cls(
            needs=(*text, *encoding, denoising, *decoder),
            tiling=vae.options,
            decoding=decoding,
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Vae:
    """The halves of the VAE, with the room that the rest of a run leaves them."""

    options: TilingOptions
    request: Request | UpscaleRequest
    host: Host
    kept: int  # bytes of host arrays beside it
    weights: dict[str, int]

    @classmethod
    def of(
        cls,
        models: Models,
        request: Request | UpscaleRequest,
        host: Host,
        decoded: LatentShape,
        host_bytes: int,
        least: int,
        *,
        encodes: bool,
    ) -> _Vae:
        decodes = request.output_type != "latent"
        halves = ["vae_encoder"] * encodes + ["vae_decoder"] * decodes
        kept = host_bytes
        if decodes and models.keeps_frames:
            video = decoded.video(host.grid)
            values = request.videos * video.num_frames * video.height * video.width * 3
            kept += values * (1 if request.output_type == "uint8" else FLOAT)
        weights = {half: models.facts(half).weights for half in halves}
        reserved = max((Need(component=half, weights=weights[half], host=kept).alone for half in halves), default=0)
        options = dataclasses.replace(request.tiling_options(), reserved=reserved, least=least)
        return cls(options=options, request=request, host=host, kept=kept, weights=weights)

    def encoder(self, models: Models, latent: LatentShape, frames: int) -> tuple[Need, ...]:
        """Of so many latent frames, a video at a time."""
        if "vae_encoder" not in self.weights:
            return ()
        encoded = dataclasses.replace(latent, frames=frames)
        largest = largest_tile(models, "vae_encoder")
        plan = plan_encoder(self.options, encoded, self.host.grid, self.host.encoder, videos=1, largest=largest)
        return (self._need("vae_encoder", plan),)

    def decoder(self, models: Models, latent: LatentShape) -> tuple[Plan, tuple[Need, ...]]:
        latents_only = "vae_decoder" not in self.weights
        largest = None if latents_only else largest_tile(models, "vae_decoder")
        # Latents are not decoded: their plan only checks what was said of tiles.
        options = dataclasses.replace(self.options, memory_limit=None) if latents_only else self.options
        plan = plan_decoder(
            options, latent, self.host.grid, self.host.decoder, videos=self.request.videos, largest=largest
        )
        return plan, () if latents_only else (self._need("vae_decoder", plan),)

    def _need(self, half: str, plan: Plan) -> Need:
        return Need(component=half, weights=self.weights[half], activations=plan.peak, host=self.kept)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpscaleMemory:
    """An upscaling within its `memory_limit`, as `RunMemory`; `encoded`: latent frames that are encoded first, or 0."""

    needs: tuple[Need, ...]
    tiling: TilingOptions
    decoding: Plan

    @classmethod
    def plan(
        cls, models: Models, request: UpscaleRequest, host: Host, latent: LatentShape, *, encodes: bool
    ) -> UpscaleMemory:
        """For (request.videos, C, F, H, W) latents of the shape `latent`, which are enlarged.

        Raises:
            RequestError, EngineError: as `RunMemory.plan`.
        """
        enlarged = host.require_upsampler().enlarged(latent)
        sides = (latent, enlarged)
        host_bytes = sum(request.videos * each.tokens * host.latent_channels * FLOAT for each in sides)
        if encodes:
            video = latent.video(host.grid)
            host_bytes += video.num_frames * video.height * video.width * 3 * FLOAT
        upsampling = upsampler_need(models, host, latent, request.videos, host_bytes)
        vae = _Vae.of(models, request, host, enlarged, host_bytes, upsampling.least, encodes=encodes)
        encoding = vae.encoder(models, latent, latent.frames)
        decoding, decoder = vae.decoder(models, enlarged)
        check_limit(request.tiling_options().memory_limit, upsampling.least)
        return cls(needs=(*encoding, upsampling, *decoder), tiling=vae.options, decoding=decoding)


def upsampler_need(models: Models, host: Host, latent: LatentShape, videos: int, host_bytes: int = 0) -> Need:
    """Of enlarging (videos, C, F, H, W) latents of this shape."""
    facts = models.facts("latent_upsampler")
    return Need(
        component="latent_upsampler",
        weights=facts.weights,
        streams=facts.streams,
        activations=models.activation_bytes("latent_upsampler", videos * latent.tokens),
        host=host_bytes + 4 * videos * host.require_upsampler().enlarged(latent).tokens * host.latent_channels * FLOAT,
    )


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
