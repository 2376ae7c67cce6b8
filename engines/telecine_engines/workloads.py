"""`768x512x121@b1`: sizes that engines are to take, from the command line, on a bundle's grid."""

from __future__ import annotations

import re
from collections.abc import Sequence

from telecine.bundle import Bundle
from telecine.errors import BundleError, EngineError, RequestError
from telecine.families import FAMILIES
from telecine.families.base import Family
from telecine.shapes import Grid, VideoShape
from telecine.workload import Workload

SIZE = r"(\d{1,5})x(\d{1,5})x(\d{1,5})"
FORM = re.compile(rf"{SIZE}(?:\.\.{SIZE})?(?:@b(\d{{1,3}})(?:\.\.(\d{{1,3}}))?)?")


def parse_workloads(
    texts: Sequence[str], bundle: Bundle, *, vae_tile: str | None = None, keyframes: int | None = None
) -> list[Workload]:
    """Workloads on the bundle's grid: one size must be on it, the ends of a range are brought down to it.

    None given means every size up to that of the bundle's preset "recommended". For `vae_tile` and `keyframes`, None is
    the family's own.

    Raises:
        EngineError: another form, an empty range, a size off the grid, no preset to take a size from, or keyframes for
            a family without conditions.
        BundleError: an unknown family.
    """
    family = family_of(bundle)
    grid = family.grid(bundle.manifest.host)
    frames = _keyframes(keyframes, family)
    named = family.vae_tile if vae_tile is None else vae_tile
    tile = None if named is None else _tile(named, grid)
    return [_parse(text, grid, tile, frames) for text in texts or [_recommended(bundle, grid)]]


def family_of(bundle: Bundle) -> Family:
    """
    Raises:
        BundleError: this telecine does not know the bundle's family.
    """
    if bundle.manifest.family not in FAMILIES:
        raise BundleError(
            f"{bundle.root} holds a {bundle.manifest.family} model",
            expected=f"one of {', '.join(FAMILIES)}",
            fix="Upgrade telecine.",
        )
    return FAMILIES[bundle.manifest.family]


def _keyframes(asked: int | None, family: Family) -> int:
    if asked is not None and (family.keyframes is None or asked < 0):
        expected = "0 or more" if family.keyframes is not None else f"none: {family.name} takes no conditions at frames"
        raise EngineError(f"keyframes {asked}", expected=expected, fix="Leave it out.")
    return (family.keyframes or 0) if asked is None else asked


def _parse(text: str, grid: Grid, tile: VideoShape | None, keyframes: int) -> Workload:
    match = FORM.fullmatch(text)
    if match is None:
        raise EngineError(
            f"workload {text!r}",
            expected="WIDTHxHEIGHTxFRAMES, a range LOW..HIGH of them, then @bVIDEOS or @bFEWEST..MOST",
            fix="Use 768x512x121, 512x512x9..1280x704x257 or 768x512x121@b1..2.",
        )
    groups = [None if group is None else int(group) for group in match.groups()]
    first, last, (fewest, most) = groups[:3], groups[3:6], groups[6:]
    if last[0] is None:
        low = high = _on_grid(text, first, grid)
    else:
        low, high = _below(first, grid), _below(last, grid)
    fewest = 1 if fewest is None else fewest
    most = fewest if most is None else most
    ends = zip((low.width, low.height, low.num_frames), (high.width, high.height, high.num_frames), strict=True)
    if fewest < 1 or most < fewest or any(smallest > largest for smallest, largest in ends):
        raise EngineError(
            f"workload {text}: nothing is in this range",
            expected="a first end that is nowhere above the second, and a video at least",
            fix="Swap the ends.",
        )
    return Workload(low=low, high=high, videos=(fewest, most), tile=tile or high, keyframes=keyframes)


def _on_grid(text: str, size: Sequence[int | None], grid: Grid) -> VideoShape:
    width, height, num_frames = size
    assert num_frames is not None
    try:
        shape = VideoShape.from_request(num_frames=num_frames, height=height, width=width, grid=grid)  # type: ignore[arg-type]
    except RequestError as error:
        raise EngineError(f"workload {text}: {error.got}", expected=error.expected, fix=error.fix) from error
    if shape.num_frames != num_frames:
        below = VideoShape.below(num_frames=num_frames, height=shape.height, width=shape.width, grid=grid).num_frames
        multiples = f", or {2 * grid.temporal}*k" if grid.chunked else ""
        raise EngineError(
            f"workload {text}: {num_frames} frames",
            expected=f"{grid.temporal * (2 if grid.chunked else 1)}*k+1{multiples}",
            fix=f"Use {below} or {grid.num_frames(grid.latent_frames(below) + 1)}.",
        )
    return shape


def _below(size: Sequence[int | None], grid: Grid) -> VideoShape:
    width, height, num_frames = size
    assert width is not None
    assert height is not None
    assert num_frames is not None
    return VideoShape.below(num_frames=num_frames, height=height, width=width, grid=grid)


def _tile(text: str, grid: Grid) -> VideoShape:
    match = re.fullmatch(SIZE, text)
    if match is None:
        raise EngineError(f"VAE tile {text!r}", expected="WIDTHxHEIGHTxFRAMES", fix="Use 512x512x121, or leave it out.")
    return _below([int(group) for group in match.groups()], grid)


def _recommended(bundle: Bundle, grid: Grid) -> str:
    preset = bundle.manifest.presets.get("recommended", {})
    try:
        largest = "{width}x{height}x{num_frames}".format(**preset)
    except KeyError as error:
        raise EngineError(
            f"no workload is given, and {bundle.root} has no preset 'recommended' with {error}",
            expected="the sizes that the engines are to take",
            fix="Add --workload WIDTHxHEIGHTxFRAMES, once a size.",
        ) from error
    return f"{grid.side}x{grid.side}x1..{largest}"
