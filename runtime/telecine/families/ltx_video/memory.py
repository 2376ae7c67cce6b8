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
from telecine.families.needs import denoising_need, frames_bytes, text_needs
from telecine.guidance import Guidance
from telecine.memory_budget import FLOAT, Need, check_limit
from telecine.request import Request
from telecine.shapes import Grid, LatentShape
from telecine.tiling import Footprint, Largest, Plan, TilingOptions, least_peak, plan_decoder, plan_encoder
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
        conditions = _Conditions.of(request, latent)
        host_bytes = _host_bytes(request, host, latent, guidance, conditions)
        text = text_needs(models, request, host_bytes)
        denoising, one_by_one = denoising_need(
            models, request, tokens=latent.tokens, beside=conditions.extra_tokens, passes=len(guidance.passes),
            host_bytes=host_bytes,
        )  # fmt: skip
        least = max(need.least for need in (*text, denoising, *beside))
        encoded = dataclasses.replace(latent, frames=conditions.encoded) if conditions.encoded else None
        vae = _Vae.plan(models, request, host, host_bytes, least, encoded=encoded, decoded=latent)
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Half:
    """Half of the VAE, on `videos` videos of these latents."""

    component: str
    weights: int
    grid: Grid
    latent: LatentShape
    footprint: Footprint
    videos: int
    largest: Largest | None

    @classmethod
    def encoder(cls, models: Models, host: Host, latent: LatentShape) -> _Half:
        """One video after the other."""
        return cls._of("vae_encoder", models, host, latent, host.encoder, 1)

    @classmethod
    def decoder(cls, models: Models, host: Host, latent: LatentShape, videos: int) -> _Half:
        return cls._of("vae_decoder", models, host, latent, host.decoder, videos)

    @classmethod
    def _of(
        cls, component: str, models: Models, host: Host, latent: LatentShape, footprint: Footprint, videos: int
    ) -> _Half:
        return cls(
            component=component,
            weights=models.facts(component).weights,
            grid=host.grid,
            latent=latent,
            footprint=footprint,
            videos=videos,
            largest=largest_tile(models, component),
        )

    def plan(self, options: TilingOptions) -> Plan:
        make = plan_decoder if self.component == "vae_decoder" else plan_encoder
        return make(options, self.latent, self.grid, self.footprint, videos=self.videos, largest=self.largest)

    def least(self, options: TilingOptions) -> int:
        """Bytes of running it on the tiles that take the least."""
        decoding = self.component == "vae_decoder"
        return least_peak(
            options, self.latent, self.grid, self.footprint,
            videos=self.videos, largest=self.largest, decoding=decoding,
        )  # fmt: skip

    def need(self, host_bytes: int, plan: Plan | None = None) -> Need:
        activations = plan.peak if plan else 0
        return Need(component=self.component, weights=self.weights, activations=activations, host=host_bytes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Vae:
    """How the VAE is run, with the room that the rest of a run leaves it; the needs of its halves that run."""

    options: TilingOptions
    encoding: tuple[Need, ...]
    decoding: Plan
    decoder: tuple[Need, ...]

    @classmethod
    def plan(
        cls,
        models: Models,
        request: Request | UpscaleRequest,
        host: Host,
        host_bytes: int,
        least: int,
        *,
        encoded: LatentShape | None,
        decoded: LatentShape,
    ) -> _Vae:
        """`least`: bytes of the stages beside it, and `host_bytes` of arrays."""
        options = request.tiling_options()
        encoder = None if encoded is None else _Half.encoder(models, host, encoded)
        decoder = None if request.output_type == "latent" else _Half.decoder(models, host, decoded, request.videos)
        if decoder and models.keeps_frames:
            host_bytes += frames_bytes(request, decoded.video(host.grid))
        halves = [half for half in (encoder, decoder) if half]
        if options.memory_limit is not None:
            reserved = max((half.need(host_bytes).alone for half in halves), default=0)
            least = max([least, *(reserved + half.least(options) for half in halves)])
            check_limit(options.memory_limit, least)
            options = dataclasses.replace(options, reserved=reserved, least=least)
        decoding = decoder.plan(options) if decoder else _unlimited(options, host, decoded, request.videos)
        return cls(
            options=options,
            encoding=(encoder.need(host_bytes, encoder.plan(options)),) if encoder else (),
            decoding=decoding,
            decoder=(decoder.need(host_bytes, decoding),) if decoder else (),
        )


def _unlimited(options: TilingOptions, host: Host, latent: LatentShape, videos: int) -> Plan:
    """Of latents that are not decoded: what was said of tiles is checked all the same."""
    return plan_decoder(dataclasses.replace(options, memory_limit=None), latent, host.grid, host.decoder, videos=videos)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpscaleMemory:
    """An upscaling within its `memory_limit`, as `RunMemory`."""

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
        encoded = latent if encodes else None
        vae = _Vae.plan(models, request, host, host_bytes, upsampling.least, encoded=encoded, decoded=enlarged)
        return cls(needs=(*vae.encoding, upsampling, *vae.decoder), tiling=vae.options, decoding=vae.decoding)


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


def _host_bytes(request: Request, host: Host, latent: LatentShape, guidance: Guidance, conditions: _Conditions) -> int:
    """Arrays that live through most of a run: embeddings twice, latents and velocities of all passes and of a step,
    pixels of conditions."""
    passes, videos = len(guidance.passes), request.videos
    texts = 2 * passes * videos * request.max_sequence_length * host.text_channels
    tokens = (2 * passes + 4) * videos * (latent.tokens + conditions.extra_tokens) * host.latent_channels
    video = dataclasses.replace(latent, frames=max(conditions.encoded, 1)).video(host.grid)
    pixels = bool(conditions.encoded) * video.num_frames * video.height * video.width * 3
    return (texts + tokens + pixels) * FLOAT
