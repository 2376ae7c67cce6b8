"""What the stages of a run of CogVideoX take in memory, and what `memory_limit` makes of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from telecine.families.base import Models
from telecine.families.cogvideox.chunks import DECODER, ENCODER, Half
from telecine.families.cogvideox.host import Host
from telecine.families.cogvideox.positions import Place
from telecine.families.cogvideox.tiling import Sides, VaePlan, least_peak, plan_vae
from telecine.families.needs import denoising_need, frames_bytes, text_needs
from telecine.guidance import Guidance
from telecine.memory_budget import FLOAT, Need, check_limit
from telecine.request import Request
from telecine.shapes import LatentShape
from telecine.tiling import TilingOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMemory:
    """A run within its `memory_limit`: its stages in their order, how the VAE's halves are run (None: one does not
    run), and whether the limit asks for the passes of guidance one after the other."""

    needs: tuple[Need, ...]
    encoding: VaePlan | None
    decoding: VaePlan
    one_by_one: bool

    @classmethod
    def plan(
        cls,
        models: Models,
        request: Request,
        host: Host,
        guidance: Guidance,
        *,
        clip: LatentShape,
        latent: LatentShape,
        encoded: LatentShape | None,
    ) -> RunMemory:
        """For `latent` latents a video, of which `clip` are decoded; `encoded` are those of what is encoded.

        Raises:
            RequestError: a limit that cannot be met, or tiles that cannot be.
            BundleError: there is something to encode, and no encoder.
            EngineError: an engine takes no such tiles, or there is none.
        """
        options, passes = request.tiling_options(), len(guidance.passes)
        host_bytes = _host_bytes(request, host, latent, passes, encoded)
        text = text_needs(models, request, host_bytes)
        denoising, one_by_one = denoising_need(
            models, request, tokens=math.prod(Place.of(latent, host.grid)), beside=_text_length(request),
            passes=passes, host_bytes=host_bytes,
        )  # fmt: skip
        encoder = None if encoded is None else _Half.of(ENCODER, models, host, encoded, 1, host_bytes)
        decoder = None
        if request.output_type != "latent":
            kept = frames_bytes(request, clip.video(host.grid)) if models.keeps_frames else 0
            decoder = _Half.of(DECODER, models, host, clip, request.videos, host_bytes + kept)
        halves = [half for half in (encoder, decoder) if half]
        options = _reserving(options, halves, least=max(need.least for need in (*text, denoising)))
        encoding, decoding = (half.plan(options) if half else None for half in (encoder, decoder))
        return cls(
            needs=(
                *text,
                *((encoder.need(encoding),) if encoder else ()),
                denoising,
                *((decoder.need(decoding),) if decoder else ()),
            ),
            encoding=encoding,
            # What was said of tiles is checked all the same.
            decoding=decoding or _unlimited(options, clip, host, request.videos),
            one_by_one=one_by_one,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Half:
    """Half of the VAE, on `videos` videos of these latents, with arrays of `host_bytes` beside it."""

    component: str
    roles: tuple[str, ...]
    weights: int
    host: Host
    latent: LatentShape
    videos: int
    host_bytes: int
    largest: Sides | None

    @classmethod
    def of(cls, half: Half, models: Models, host: Host, latent: LatentShape, videos: int, host_bytes: int) -> _Half:
        models.require(half.component)
        length = latent.frames if half is DECODER else host.grid.num_frames(latent.frames)
        roles = half.roles(length)
        return cls(
            component=half.component,
            roles=roles,
            weights=sum(models.facts(half.component, role).weights for role in roles),
            host=host,
            latent=latent,
            videos=videos,
            host_bytes=host_bytes,
            largest=largest_picture(models, half, length),
        )

    @property
    def decoding(self) -> bool:
        return self.component == DECODER.component

    def plan(self, options: TilingOptions) -> VaePlan:
        return plan_vae(
            options, self.latent, self.host, videos=self.videos, decoding=self.decoding, largest=self.largest
        )

    def least(self, options: TilingOptions) -> int:
        """Bytes of running it on the tiles that take the least."""
        return least_peak(
            options, self.latent, self.host, videos=self.videos, decoding=self.decoding, largest=self.largest
        )

    def need(self, plan: VaePlan | None = None) -> Need:
        activations = plan.peak if plan else 0
        return Need(
            component=self.component, weights=self.weights, activations=activations, host=self.host_bytes,
            roles=self.roles,
        )  # fmt: skip


def _reserving(options: TilingOptions, halves: Sequence[_Half], *, least: int) -> TilingOptions:
    """The same, telling what a limit must have room for beside the VAE's activations; `least` is of other stages.

    Raises:
        RequestError: a limit that cannot be met.
    """
    if options.memory_limit is None:
        return options
    least = max([least, *(half.need().alone + half.least(options) for half in halves)])
    check_limit(options.memory_limit, least)
    reserved = max((half.need().alone for half in halves), default=0)
    return dataclasses.replace(options, reserved=reserved, least=least)


def largest_picture(models: Models, half: Half, length: int) -> Sides | None:
    """(height, width) in latents that the graphs of so many frames' or latents' chunks take, where there are limits.

    Raises:
        EngineError: there is no engine that fits, and nothing else may run a graph.
    """
    limits = [found for role in half.roles(length) if (found := models.limits(half.component, role)) is not None]
    if not limits:
        return None
    return min(each["latent_height"] for each in limits), min(each["latent_width"] for each in limits)


def _unlimited(options: TilingOptions, latent: LatentShape, host: Host, videos: int) -> VaePlan:
    return plan_vae(dataclasses.replace(options, memory_limit=None), latent, host, videos=videos, decoding=True)


def _text_length(request: Request) -> int:
    given = request.embeds("prompt")
    return int(given[0].shape[1]) if given else request.max_sequence_length


def _host_bytes(request: Request, host: Host, latent: LatentShape, passes: int, encoded: LatentShape | None) -> int:
    """Arrays that live through most of a run: embeddings twice, latents with an image's beside them and predictions of
    all passes and of a step, pixels of what is encoded."""
    videos, channels = request.videos, host.latent_channels + host.image_channels
    texts = 2 * passes * videos * _text_length(request) * host.text_channels
    latents = (2 * passes + 4) * videos * latent.frames * latent.height * latent.width * channels
    pixels = 0
    if encoded is not None:
        video = encoded.video(host.grid)
        pixels = videos * video.num_frames * video.height * video.width * 3
    return (texts + latents + pixels) * FLOAT
