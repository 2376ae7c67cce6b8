"""Rotary position embedding of the LTX transformers: the small tables that the graph gathers from.

A token's angles depend on one coordinate per axis, and an axis has few distinct coordinates: tables for those
and an index per token replace the (T, D) cosines and sines (528 MB at 32,256 tokens x 4,096).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telecine.errors import RequestError
from telecine.shapes import Grid, LatentShape

Array = npt.NDArray[np.float32]

# Extent of the training videos along t (in units of frame / frame_rate), y and x (in pixels):
# base_num_frames, base_height, base_width of LTXVideoTransformer3DModel, the same in every release.
BASE_EXTENT = (20, 2048, 2048)


# eq=False: comparing arrays with == has no single truth value.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RopeTables:
    """(3, U, K) cos and sin, float32, and (T, 3) index, int32: the transformer's `rope_cos/sin/index`.

    Axes are t, y, x. U is the largest number of distinct coordinates of an axis (shorter axes are padded
    with the identity rotation), K the number of frequencies.
    """

    cos: Array
    sin: Array
    index: npt.NDArray[np.int32]


def video_positions(shape: LatentShape, grid: Grid, frame_rate: float) -> tuple[Array, Array, Array]:
    """(F,), (H,) and (W,) positions of latents as fractions of the training extent, float32.

    `frame_rate` is in frames a second. Bit for bit torch's: a Python scalar is rounded to float32 and each
    operation rounds.

    Raises:
        RequestError: the frame rate is not a positive number.

    Source: diffusers `LTXVideoRotaryPosEmbed._prepare_video_coords` with the `rope_interpolation_scale` of
    `LTXPipeline.__call__`.
    """
    _check_frame_rate(frame_rate)
    scales = (grid.temporal / frame_rate, grid.spatial, grid.spatial)
    counts = (shape.frames, shape.height, shape.width)
    t, y, x = (
        np.arange(count, dtype=np.float32) * np.float32(scale) / np.float32(extent)
        for count, scale, extent in zip(counts, scales, BASE_EXTENT, strict=True)
    )
    return t, y, x


def keyframe_positions(
    first_frames: npt.NDArray[np.int64], shape: LatentShape, grid: Grid, frame_rate: float
) -> tuple[Array, Array, Array]:
    """(F,), (H,) and (W,) positions of latent frames that begin at any pixel frames (F,), as fractions, float32.

    H and W are `shape`'s. Bit for bit torch's.

    Raises:
        RequestError: the frame rate is not a positive number.

    Source: diffusers `LTXConditionPipeline._scale_video_ids`, and what its `__call__` makes of the frame rate.
    """
    _check_frame_rate(frame_rate)
    seconds = first_frames.astype(np.float32) * np.float32(1.0 / frame_rate)
    pixels = (np.arange(side, dtype=np.float32) * np.float32(grid.spatial) for side in (shape.height, shape.width))
    t, y, x = (each / np.float32(extent) for each, extent in zip((seconds, *pixels), BASE_EXTENT, strict=True))
    return t, y, x


def _check_frame_rate(frame_rate: float) -> None:
    # Below the smallest normal float32 the scale of the frames would overflow.
    if not (math.isfinite(frame_rate) and frame_rate > np.finfo(np.float32).tiny):
        raise RequestError(
            f"frame_rate is {frame_rate}", expected="a positive number of frames a second", fix="Use 25."
        )


def grid_index(shape: LatentShape) -> npt.NDArray[np.int32]:
    """(T, 3) int32 coordinates (frame, row, column) of packed tokens: the order of `latents.pack`."""
    axes = np.indices((shape.frames, shape.height, shape.width), dtype=np.int32)
    return np.ascontiguousarray(axes.reshape(3, -1).T)


def rotations(fractions: Array, frequencies: Array) -> tuple[Array, Array]:
    """(N, K) cos and sin, float32, of the angles at (N,) positions along one axis, as fractions of its extent.

    `frequencies` (K,) is torch's own float32 vector, which the bundle ships: angles reach 15,708 radians, so
    a last-bit difference there would move a cosine by 1.9e-3. For the same reason the angle is rounded to
    float32 like torch's; its cosine and sine are then correctly rounded.

    Source: diffusers `LTXVideoRotaryPosEmbed.forward`; Su et al. 2021.
    """
    centred = np.asarray(fractions, np.float32) * np.float32(2) - np.float32(1)
    angles = np.multiply.outer(centred, np.asarray(frequencies, np.float32)).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def make_tables(positions: tuple[Array, Array, Array], index: npt.NDArray[np.int32], frequencies: Array) -> RopeTables:
    """Tables (3, U, K) at each axis' distinct positions for tokens (T, 3) that index them; see `rotations`."""
    assert index.shape == (len(index), 3)
    distinct = max(len(axis) for axis in positions)
    cos = np.ones((3, distinct, len(frequencies)), np.float32)
    sin = np.zeros_like(cos)
    for axis, fractions in enumerate(positions):
        cos[axis, : len(fractions)], sin[axis, : len(fractions)] = rotations(fractions, frequencies)
    return RopeTables(cos=cos, sin=sin, index=np.asarray(index, np.int32))


def expand(tables: RopeTables, inner_dim: int) -> tuple[Array, Array]:
    """(T, inner_dim) cos and sin of every token: what the graph gathers, for tests and `verify`.

    Columns: `inner_dim % 6` identities first, then t, y, x for each frequency, every value twice.

    Source: diffusers `LTXVideoRotaryPosEmbed.forward`.
    """
    padding, frequencies = inner_dim % 6, tables.cos.shape[2]
    assert frequencies == inner_dim // 6

    def gather(table: Array, identity: float) -> Array:
        out = np.full((len(tables.index), inner_dim), identity, np.float32)
        columns = out[:, padding:].reshape(len(out), frequencies, 3, 2)
        for axis in range(3):
            columns[:, :, axis, :] = table[axis, tables.index[:, axis], :, None]
        out[:, padding:] = columns.reshape(len(out), -1)
        return out

    return gather(tables.cos, 1), gather(tables.sin, 0)
