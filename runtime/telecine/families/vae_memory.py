"""What both halves of a VAE take in memory, and the tiles that a run's `memory_limit` asks for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Protocol

from telecine.families.base import Models
from telecine.families.needs import frames_bytes
from telecine.families.vae import largest_tile
from telecine.memory_budget import Need, check_limit
from telecine.request import Request
from telecine.shapes import Grid, LatentShape
from telecine.tiling import Footprint, Largest, Plan, TilingOptions, least_peak, plan_decoder, plan_encoder
from telecine.upscale_request import UpscaleRequest


class VaeHost(Protocol):
    """What the manifest tells of a VAE of which each half is one graph."""

    @property
    def grid(self) -> Grid: ...

    @property
    def encoder(self) -> Footprint: ...

    @property
    def decoder(self) -> Footprint: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Half:
    """Half of the VAE, on `videos` videos of these latents."""

    component: str
    weights: int
    grid: Grid
    latent: LatentShape
    footprint: Footprint
    videos: int
    largest: Largest | None

    @classmethod
    def encoder(cls, models: Models, host: VaeHost, latent: LatentShape) -> Half:
        """One video after the other."""
        return cls._of("vae_encoder", models, host, latent, host.encoder, 1)

    @classmethod
    def decoder(cls, models: Models, host: VaeHost, latent: LatentShape, videos: int) -> Half:
        return cls._of("vae_decoder", models, host, latent, host.decoder, videos)

    @classmethod
    def _of(
        cls, component: str, models: Models, host: VaeHost, latent: LatentShape, footprint: Footprint, videos: int
    ) -> Half:
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
class VaeMemory:
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
        host: VaeHost,
        host_bytes: int,
        least: int,
        *,
        encoded: LatentShape | None,
        decoded: LatentShape,
    ) -> VaeMemory:
        """`least`: bytes of the stages beside it, and `host_bytes` of arrays."""
        options = request.tiling_options()
        encoder = None if encoded is None else Half.encoder(models, host, encoded)
        decoder = None if request.output_type == "latent" else Half.decoder(models, host, decoded, request.videos)
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


def _unlimited(options: TilingOptions, host: VaeHost, latent: LatentShape, videos: int) -> Plan:
    """Of latents that are not decoded, of any size: what was said of tiles is checked all the same."""
    footprint = dataclasses.replace(host.decoder, least_side=1)
    return plan_decoder(dataclasses.replace(options, memory_limit=None), latent, host.grid, footprint, videos=videos)
