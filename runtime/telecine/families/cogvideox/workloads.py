"""What a workload asks of the axes of CogVideoX' graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any

from telecine.families.cogvideox.host import Host
from telecine.families.cogvideox.positions import Place
from telecine.workload import AxisRange, AxisRanges, Workload

TEXT_LENGTH = 226  # of all three pipelines: pads are embedded and attended to as well
PASSES = 2  # of guidance: the negative prompt and the positive one
MOST_LATENTS = 3  # in a chunk of the decoder: the first one, of an odd number of latents
ENCODER_FIRST = (1, 2, 3)  # latents in the first chunk of a longer video, beside the one that stands for one frame


def axis_ranges(component: str, workload: Workload, host: Mapping[str, Any]) -> list[AxisRanges]:
    """Ranges by symbol for the graphs of a component: one size, at which a run of this workload uses it.

    Every role of a half of the VAE has the same picture; how many frames a chunk has, it alone knows.
    """
    return [GRAPHS[component](workload, Host.parse(host))]


def _text_encoder(workload: Workload, host: Host) -> AxisRanges:
    return {"batch": _videos(workload), "text_length": AxisRange(1, TEXT_LENGTH, TEXT_LENGTH)}


def _transformer(workload: Workload, host: Host) -> AxisRanges:
    low, high = (
        Place.of(shape.latent(host.grid).padded(host.grid), host.grid) for shape in (workload.low, workload.high)
    )
    fewest, most = workload.videos
    axes = {"frame_groups": "frames", "rows": "rows", "columns": "columns"}
    return {
        "batch": AxisRange(fewest, PASSES * most, PASSES * most),
        "text_length": AxisRange(1, TEXT_LENGTH, TEXT_LENGTH),
        **{symbol: AxisRange(getattr(low, axis), *[getattr(high, axis)] * 2) for symbol, axis in axes.items()},
    }


def _vae_decoder(workload: Workload, host: Host) -> AxisRanges:
    return _pictures(workload, host) | {"batch": AxisRange(1, *[workload.videos[1]] * 2)}


def _vae_encoder(workload: Workload, host: Host) -> AxisRanges:
    fewest, usual, most = ENCODER_FIRST
    # One video after the other, as diffusers does.
    return _pictures(workload, host) | {
        "batch": AxisRange(1, 1, 1),
        "chunk_latents": AxisRange(fewest, usual, most),
    }


def _denoise_step(workload: Workload, host: Host) -> AxisRanges:
    """Latents as one row of channels, (B, 1, F·C·H·W)."""
    low, high = (
        math.prod((latent.frames, latent.height, latent.width)) * host.latent_channels
        for latent in (shape.latent(host.grid).padded(host.grid) for shape in (workload.low, workload.high))
    )
    one = AxisRange(1, 1, 1)
    return {
        "passes": AxisRange(1, PASSES, PASSES),
        "batch": _videos(workload),
        "tokens": one,
        "coefficient_tokens": one,
        "channels": AxisRange(low, high, high),
    }


def _decoder_latents(workload: Workload, host: Host) -> AxisRanges:
    low, high = workload.low.latent(host.grid), workload.high.latent(host.grid)
    sides = ("frames", "height", "width")
    return {f"latent_{side}": AxisRange(getattr(low, side), *[getattr(high, side)] * 2) for side in sides} | {
        "batch": _videos(workload)
    }


def _uint8_frames(workload: Workload, host: Host) -> AxisRanges:
    """What the decoder makes of a chunk."""
    decoded, spatial = _vae_decoder(workload, host), host.grid.spatial
    most = host.grid.num_frames(MOST_LATENTS)
    return {
        "batch": decoded["batch"],
        "num_frames": AxisRange(1, most, most),
        "height": AxisRange(*(spatial * side for side in astuple(decoded["latent_height"]))),
        "width": AxisRange(*(spatial * side for side in astuple(decoded["latent_width"]))),
    }


def _pictures(workload: Workload, host: Host) -> AxisRanges:
    """Any picture, or tile of one, up to the largest."""
    tile, high = workload.tile.latent(host.grid), workload.high.latent(host.grid)
    sides = {"latent_height": min(tile.height, high.height), "latent_width": min(tile.width, high.width)}
    return {symbol: AxisRange(1, side, side) for symbol, side in sides.items()}


def _videos(workload: Workload) -> AxisRange:
    fewest, most = workload.videos
    return AxisRange(fewest, most, most)


GRAPHS: Mapping[str, Callable[[Workload, Host], AxisRanges]] = {
    "text_encoder": _text_encoder,
    "transformer": _transformer,
    "vae_encoder": _vae_encoder,
    "vae_decoder": _vae_decoder,
    "denoise_step": _denoise_step,
    "decoder_latents": _decoder_latents,
    "uint8_frames": _uint8_frames,
}
