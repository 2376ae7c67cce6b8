"""What a workload asks of the axes of CogVideoX' graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from telecine.families.cogvideox.host import Host
from telecine.families.cogvideox.positions import Place
from telecine.workload import AxisRange, AxisRanges, Workload

TEXT_LENGTH = 226  # of all three pipelines: pads are embedded and attended to as well
PASSES = 2  # of guidance: the negative prompt and the positive one
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
}
