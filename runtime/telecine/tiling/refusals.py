"""What is said of tiles that cannot be."""

from __future__ import annotations

from telecine.errors import RequestError
from telecine.shapes import Grid, LatentShape
from telecine.tiling.options import TilingOptions, show_size
from telecine.tiling.tile import Sides


def shown(sides: Sides, grid: Grid) -> str:
    """WIDTHxHEIGHTxFRAMES of latents."""
    frames, height, width = sides
    video = LatentShape(frames=frames, height=height, width=width).video(grid)
    return f"{video.width}x{video.height}x{video.num_frames}"


def check_grid(name: str, value: int, ratio: int) -> None:
    """
    Raises:
        RequestError: the value is not a multiple of the ratio.
    """
    if value % ratio:
        raise RequestError(
            f"{name} is {value}", expected=f"a multiple of {ratio}", fix=f"Use {max(value // ratio, 1) * ratio}."
        )


def too_small(smallest: int, sides: Sides, least: int, grid: Grid) -> RequestError:
    """Of calls of the network on so few latents of a side, of a video of `sides`, where it takes `least`."""
    whole = min(sides[1:]) == smallest
    return RequestError(
        f"a {'video' if whole else 'tile'} of {smallest * grid.spatial} pixels a side",
        expected=f"at least {least * grid.spatial}: the VAE of this model pads by mirror images",
        fix="Ask for a larger video."
        if whole
        else "Use another tile_size or tile_stride, which leave more for the last tile, or tiling='auto'.",
    )


def too_little(options: TilingOptions, peak: int, fix: str) -> RequestError:
    """Of a memory limit below the `peak` bytes that tiles take."""
    assert options.memory_limit is not None
    least = max(peak + options.reserved, options.least)
    return RequestError(
        f"memory_limit is {show_size(options.memory_limit)}", expected=f"at least {show_size(least)} here", fix=fix
    )
