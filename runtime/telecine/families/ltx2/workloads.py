"""What a workload asks of the axes of LTX-2's graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from telecine.errors import RequestError
from telecine.families.ltx2.audio import FASTEST, SLOWEST
from telecine.families.ltx2.host import Host
from telecine.families.ltx2.two_stage import DEFAULTS
from telecine.families.stages import Sizes
from telecine.shapes import VideoShape
from telecine.workload import AxisRange, AxisRanges, Workload

TEXT_LENGTH = 1024  # of all three pipelines
# The largest tile of the VAE, WIDTHxHEIGHTxFRAMES: 16 latents a side, beyond which larger ones save little work.
VAE_TILE = "512x512x121"
KEYFRAMES = 4


def axis_ranges(component: str, workload: Workload, host: Mapping[str, Any]) -> list[AxisRanges]:
    """Ranges by symbol for the graphs of a component, once for each size at which a run of this workload uses it.

    Passes of guidance run one after the other: a batch is of videos.
    """
    return GRAPHS[component](workload, Host.parse(host))


def _text_encoder(workload: Workload, host: Host) -> list[AxisRanges]:
    # A prompt at a time. Its features are of all of its padding.
    return [{"batch": AxisRange(1, 1, 1), "text_length": _text_lengths(host)}]


def _connectors(workload: Workload, host: Host) -> list[AxisRanges]:
    return [{"batch": AxisRange(1, *[workload.videos[1]] * 2), "text_length": _text_lengths(host)}]


def _text_lengths(host: Host) -> AxisRange:
    return AxisRange(host.connectors.registers or 1, TEXT_LENGTH, TEXT_LENGTH)


def _transformer(workload: Workload, host: Host) -> list[AxisRanges]:
    return [_denoised(each, host) for each in _stages(workload, host)]


def _denoised(workload: Workload, host: Host) -> AxisRanges:
    low, high = workload.low.latent(host.grid), workload.high.latent(host.grid)
    extended = dataclasses.replace(high, frames=high.frames + workload.keyframes)
    positions = (max(each.frames, each.height, each.width) for each in (low, high, extended))
    # One a video, or one a token, of which some are held.
    timesteps = AxisRange(1, 1, extended.tokens)
    return {
        "batch": _videos(workload),
        "tokens": AxisRange(low.tokens, high.tokens, extended.tokens),
        "audio_tokens": _audio_latents(workload, host),
        "text_length": _text_lengths(host),
        "timestep_tokens": timesteps,
        "cross_timestep_tokens": timesteps,
        "rope_positions": AxisRange(*positions),
    }


def _audio_latents(workload: Workload, host: Host) -> AxisRange:
    def count(shape: VideoShape, frame_rate: float) -> int:
        return max(host.audio_grid.latents(shape.num_frames, frame_rate), 1)

    most = count(workload.high, SLOWEST)
    return AxisRange(count(workload.low, FASTEST), most, most)


def _audio_vae_decoder(workload: Workload, host: Host) -> list[AxisRanges]:
    # One video's sound after the other.
    return [{"batch": AxisRange(1, 1, 1), "audio_tokens": _audio_latents(workload, host)}]


def _vocoder(workload: Workload, host: Host) -> list[AxisRanges]:
    """Of spectrograms, whose first latent stands for one frame."""
    ratio = host.audio_grid.temporal
    frames = (ratio * (each - 1) + 1 for each in dataclasses.astuple(_audio_latents(workload, host)))
    return [{"batch": AxisRange(1, 1, 1), "mel_frames": AxisRange(*frames)}]


def _vae_decoder(workload: Workload, host: Host) -> list[AxisRanges]:
    return [_tiles(workload, host, host.decoder.least_side) | {"batch": AxisRange(1, *[workload.videos[1]] * 2)}]


def _vae_encoder(workload: Workload, host: Host) -> list[AxisRanges]:
    # One video after the other, as diffusers does.
    return [_tiles(workload, host, host.encoder.least_side) | {"batch": AxisRange(1, 1, 1)}]


def _tiles(workload: Workload, host: Host, least_side: int) -> AxisRanges:
    """Any tile up to the largest: those at the edges of a video, and single images, are small.

    Raises:
        RequestError: videos smaller than the least that the VAE takes.
    """
    tile = workload.tile.latent(host.grid)
    sizes = [each.high.latent(host.grid) for each in _stages(workload, host)]
    largest = {
        f"latent_{side}": min(getattr(tile, side), max(getattr(size, side) for size in sizes))
        for side in ("frames", "height", "width")
    }
    least = {"latent_frames": 1, "latent_height": least_side, "latent_width": least_side}
    for symbol, side in largest.items():
        if side < least[symbol]:
            raise RequestError(
                f"a workload of at most {side * host.grid.spatial} pixels a side",
                expected=f"{least[symbol] * host.grid.spatial}: the VAE of this model pads by mirror images",
                fix="Build for larger videos, or with a larger --vae-tile.",
            )
    return {symbol: AxisRange(least[symbol], side, side) for symbol, side in largest.items()}


def _latent_upsampler(workload: Workload, host: Host) -> list[AxisRanges]:
    """Latents as `upscale` gets them, and those of the first of two stages."""
    whole, *staged = _stages(workload, host)
    return [_latents(each, host) for each in (whole, *staged[:1])]


def _latents(workload: Workload, host: Host) -> AxisRanges:
    """The latents of whole videos."""
    low, high = workload.low.latent(host.grid), workload.high.latent(host.grid)
    sides = ("frames", "height", "width")
    return {f"latent_{side}": AxisRange(getattr(low, side), *[getattr(high, side)] * 2) for side in sides} | {
        "batch": _videos(workload)
    }


def _uint8_frames(workload: Workload, host: Host) -> list[AxisRanges]:
    """What the decoder makes: any tile, of as many videos as it takes."""
    (decoded,) = _vae_decoder(workload, host)
    spatial, frames = host.grid.spatial, decoded["latent_frames"]
    most = host.grid.num_frames(frames.max)
    return [
        {
            "batch": decoded["batch"],
            "num_frames": AxisRange(1, most, most),
            "height": AxisRange(*(spatial * side for side in dataclasses.astuple(decoded["latent_height"]))),
            "width": AxisRange(*(spatial * side for side in dataclasses.astuple(decoded["latent_width"]))),
        }
    ]


def _videos(workload: Workload) -> AxisRange:
    fewest, most = workload.videos
    return AxisRange(fewest, most, most)


def _stages(workload: Workload, host: Host) -> list[Workload]:
    """The workload itself; where the bundle has an upsampler for two stages, those of the recipe too."""
    if host.upsampler is None or (host.upsampler.spatial, host.upsampler.temporal) != (2, 1):
        return [workload]
    low, high = (Sizes.plan(shape, DEFAULTS["downscale_factor"], host.grid) for shape in (workload.low, workload.high))
    first = dataclasses.replace(workload, low=low.first, high=high.first)
    return [workload, first, dataclasses.replace(workload, low=low.second, high=high.second)]


GRAPHS: Mapping[str, Callable[[Workload, Host], list[AxisRanges]]] = {
    "text_encoder": _text_encoder,
    "connectors": _connectors,
    "transformer": _transformer,
    "vae_encoder": _vae_encoder,
    "vae_decoder": _vae_decoder,
    "audio_vae_decoder": _audio_vae_decoder,
    "vocoder": _vocoder,
    "latent_upsampler": _latent_upsampler,
    "uint8_frames": _uint8_frames,
}
