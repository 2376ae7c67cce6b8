"""What a workload asks of the axes of LTX-Video's graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import Any

from telecine.families.ltx_video.host import Host
from telecine.families.ltx_video.two_stage import DEFAULTS
from telecine.families.stages import Sizes
from telecine.workload import AxisRange, AxisRanges, Workload

# Of LTXPipeline and of LTXConditionPipeline. Texts may be shorter: LTXConditionPipeline encodes them without pads.
TEXT_LENGTHS = (128, 256)
# The largest tile of the VAE, WIDTHxHEIGHTxFRAMES: 16 latents a side, beyond which larger ones save little work.
VAE_TILE = "512x512x121"
KEYFRAMES = 4
USUAL_PASSES = 2  # of guidance: the negative prompt and the positive one
MOST_PASSES = 3  # and the perturbed one


def axis_ranges(component: str, workload: Workload, host: Mapping[str, Any]) -> list[AxisRanges]:
    """Ranges by symbol for the graphs of a component, once for each size at which a run of this workload uses it.

    The usual size is the largest that is run without conditions, by two passes of guidance.
    """
    return GRAPHS[component](workload, Host.parse(host))


def _text_encoder(workload: Workload, host: Host) -> list[AxisRanges]:
    usual, longest = TEXT_LENGTHS
    return [{"batch": _videos(workload), "text_length": AxisRange(1, usual, longest)}]


def _transformer(workload: Workload, host: Host) -> list[AxisRanges]:
    return [_denoised(each, host) for each in _stages(workload, host)]


def _denoised(workload: Workload, host: Host) -> AxisRanges:
    low, high = workload.low.latent(host.grid), workload.high.latent(host.grid)
    extended = dataclasses.replace(high, frames=high.frames + workload.keyframes)
    positions = (max(each.frames, each.height, each.width) for each in (low, high, extended))
    fewest, most = workload.videos
    usual_text, longest_text = TEXT_LENGTHS
    return {
        "batch": AxisRange(fewest, USUAL_PASSES * most, MOST_PASSES * most),
        "tokens": AxisRange(low.tokens, high.tokens, extended.tokens),
        "text_length": AxisRange(1, usual_text, longest_text),
        # One a video, or one a token: tuned for the one that takes time.
        "timestep_tokens": AxisRange(1, high.tokens, extended.tokens),
        "rope_positions": AxisRange(*positions),
    }


def _vae_decoder(workload: Workload, host: Host) -> list[AxisRanges]:
    # Tiles are decoded one video at a time.
    return [_tiles(workload, host) | {"batch": AxisRange(1, *[workload.videos[1]] * 2)}]


def _vae_encoder(workload: Workload, host: Host) -> list[AxisRanges]:
    # One video after the other, as diffusers does.
    return [_tiles(workload, host) | {"batch": AxisRange(1, 1, 1)}]


def _tiles(workload: Workload, host: Host) -> AxisRanges:
    """Any tile up to the largest: those at the edges of a video, and single images, are small."""
    tile = workload.tile.latent(host.grid)
    sizes = [each.high.latent(host.grid) for each in _stages(workload, host)]
    largest = {
        f"latent_{side}": min(getattr(tile, side), max(getattr(size, side) for size in sizes))
        for side in ("frames", "height", "width")
    }
    return {symbol: AxisRange(1, side, side) for symbol, side in largest.items()}


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


def _denoise_step(workload: Workload, host: Host) -> list[AxisRanges]:
    """All of a step's predictions at once, of as many videos as the transformer takes."""
    return _joined([_stepped(each, host) for each in _stages(workload, host)])


def _stepped(workload: Workload, host: Host) -> AxisRanges:
    tokens = _denoised(workload, host)["tokens"]
    return {
        "passes": AxisRange(1, USUAL_PASSES, MOST_PASSES),
        "batch": _videos(workload),
        "tokens": tokens,
        "coefficient_tokens": AxisRange(1, 1, tokens.max),
        "channels": AxisRange(*[host.latent_channels] * 3),
    }


def _decoder_latents(workload: Workload, host: Host) -> list[AxisRanges]:
    """The whole video's, which may be decoded in tiles after."""
    return _joined([_latents(each, host) for each in _stages(workload, host)])


def _uint8_frames(workload: Workload, host: Host) -> list[AxisRanges]:
    """What the decoder makes: any tile, of as many videos as it takes."""
    (decoded,) = _vae_decoder(workload, host)
    spatial, temporal = host.grid.spatial, host.grid.temporal
    frames = decoded["latent_frames"]
    return [
        {
            "batch": decoded["batch"],
            "num_frames": AxisRange(1, *[temporal * (frames.max - 1) + 1] * 2),
            "height": AxisRange(*(spatial * side for side in dataclasses.astuple(decoded["latent_height"]))),
            "width": AxisRange(*(spatial * side for side in dataclasses.astuple(decoded["latent_width"]))),
        }
    ]


def _joined(sizes: list[AxisRanges]) -> list[AxisRanges]:
    """One size that holds all: host math has little to tune. The usual one is the first."""
    first, *others = sizes
    return [{symbol: reduce(or_, (other[symbol] for other in others), axis) for symbol, axis in first.items()}]


def _videos(workload: Workload) -> AxisRange:
    fewest, most = workload.videos
    return AxisRange(fewest, most, most)


def _stages(workload: Workload, host: Host) -> list[Workload]:
    """The workload itself; where the bundle has an upsampler for two stages, those of the recipes too."""
    if host.upsampler is None or (host.upsampler.spatial, host.upsampler.temporal) != (2, 1):
        return [workload]
    low, high = (Sizes.plan(shape, DEFAULTS["downscale_factor"], host.grid) for shape in (workload.low, workload.high))
    first = dataclasses.replace(workload, low=low.first, high=high.first)
    return [workload, first, dataclasses.replace(workload, low=low.second, high=high.second)]


GRAPHS: Mapping[str, Callable[[Workload, Host], list[AxisRanges]]] = {
    "text_encoder": _text_encoder,
    "transformer": _transformer,
    "vae_encoder": _vae_encoder,
    "vae_decoder": _vae_decoder,
    "latent_upsampler": _latent_upsampler,
    "denoise_step": _denoise_step,
    "decoder_latents": _decoder_latents,
    "uint8_frames": _uint8_frames,
}
