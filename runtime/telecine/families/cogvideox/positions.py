"""Where tokens are, as CogVideoX' transformers are told: rotary tables, or sinusoids along three axes.

Pure NumPy. A `Place` is (frames, rows, columns) of tokens: what is counted is groups of `patch_size_t` latent frames
and patches of `patch_size` latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from telecine.errors import RequestError
from telecine.shapes import Grid, LatentShape

Array = npt.NDArray[np.float32]


class Place(NamedTuple):
    """How many tokens there are along each axis."""

    frames: int
    rows: int
    columns: int

    @classmethod
    def of(cls, latent: LatentShape, grid: Grid) -> Place:
        return cls(latent.frames // grid.patch_t, latent.height // grid.patch, latent.width // grid.patch)


class Positions(Protocol):
    """What a model is told of tokens' places."""

    def check(self, place: Place, pixels: int, temporal: int) -> None:
        """Refuse a size that the model cannot be told of; a token has `pixels` on a side, a latent `temporal` frames.

        Raises:
            RequestError: the model has no positions for it.
        """

    def inputs(self, place: Place) -> dict[str, Array]:
        """The transformer's inputs that tell them, by name."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rope:
    """Rotary tables of models trained on a grid of `rows` x `columns` tokens.

    `stretched` (1.0): a video's grid is resized and cropped into that one. Otherwise (1.5) places count from 0, up to
    it. `frame_frequencies` and `side_frequencies` are torch's. `table_frames`: the model adds a learned table (5b-I2V)
    of this grid and so many latent frames, and knows no other size.

    Source: diffusers `get_3d_rotary_pos_embed`, `get_resize_crop_region_for_grid`.
    """

    rows: int
    columns: int
    stretched: bool
    frame_frequencies: Array
    side_frequencies: Array
    table_frames: int | None = None

    def check(self, place: Place, pixels: int, temporal: int) -> None:
        if self.table_frames is not None:
            only = Place(self.table_frames, self.rows, self.columns)
            if place != only:
                frames = (only.frames - 1) * temporal + 1
                raise RequestError(
                    f"{place.frames} latent frames of {place.columns * pixels} x {place.rows * pixels} pixels",
                    expected=f"{only.frames} of {only.columns * pixels} x {only.rows * pixels}, which its learned"
                    " positions are for (diffusers puts sinusoids in their place at another length)",
                    fix=f"Use height={only.rows * pixels}, width={only.columns * pixels}, num_frames={frames}.",
                )
        elif not self.stretched and (place.rows > self.rows or place.columns > self.columns):
            raise RequestError(
                f"a video of {place.columns * pixels} x {place.rows * pixels} pixels",
                expected=f"at most {self.columns * pixels} x {self.rows * pixels}: the model counts no further",
                fix="Ask for a smaller size.",
            )

    def inputs(self, place: Place) -> dict[str, Array]:
        """(F, H, W, size / 2) cos and sin of every token: frames, then rows, then columns."""
        angles = [
            np.multiply.outer(positions, frequencies).astype(np.float64)
            for positions, frequencies in zip(
                self.axes(place),
                (self.frame_frequencies, self.side_frequencies, self.side_frequencies),
                strict=True,
            )
        ]
        tables = {}
        for name, function in (("rope_cos", np.cos), ("rope_sin", np.sin)):
            parts = []
            for axis, values in enumerate(angles):
                shape = [1, 1, 1, values.shape[1]]
                shape[axis] = len(values)
                part = function(values).astype(np.float32).reshape(shape)
                parts.append(np.broadcast_to(part, (*place, values.shape[1])))
            tables[name] = np.ascontiguousarray(np.concatenate(parts, axis=-1))
        return tables

    def axes(self, place: Place) -> tuple[Array, Array, Array]:
        """(F,), (H,) and (W,) positions, float32."""
        if not self.stretched:
            frames, rows, columns = (np.arange(count, dtype=np.float32) for count in place)
            return frames, rows, columns
        (top, left), (bottom, right) = crop_region(place.rows, place.columns, self.rows, self.columns)
        return (
            linspace(0, place.frames * (place.frames - 1) / place.frames, place.frames),
            linspace(top, bottom * (place.rows - 1) / place.rows, place.rows),
            linspace(left, right * (place.columns - 1) / place.columns, place.columns),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sincos:
    """Sinusoids that a model `width` wide adds to its tokens (2b).

    A quarter of the columns tells the frame, three eighths the column, three eighths the row, in this order.

    Source: diffusers `get_3d_sincos_pos_embed`.
    """

    width: int
    spatial_scale: float
    temporal_scale: float

    def check(self, place: Place, pixels: int, temporal: int) -> None:
        """Any size will do."""

    def inputs(self, place: Place) -> dict[str, Array]:
        """(F, D/4), (W, 3D/8) and (H, 3D/8), one for each axis: the graph joins them."""
        side = 3 * self.width // 8
        return {
            "position_frames": sinusoids(place.frames, self.temporal_scale, self.width // 4),
            "position_columns": sinusoids(place.columns, self.spatial_scale, side),
            "position_rows": sinusoids(place.rows, self.spatial_scale, side),
        }


def crop_region(rows: int, columns: int, base_rows: int, base_columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(top, left), (bottom, right) of a grid that is resized into a base grid, its shape kept, and centred in it.

    Source: diffusers `get_resize_crop_region_for_grid`, with Python's rounding.
    """
    if rows / columns > base_rows / base_columns:
        height, width = base_rows, round(base_rows / rows * columns)
    else:
        height, width = round(base_columns / columns * rows), base_columns
    top, left = round((base_rows - height) / 2.0), round((base_columns - width) / 2.0)
    return (top, left), (top + height, left + width)


def linspace(start: float, stop: float, count: int) -> Array:
    """(count,) float32 from `start` to `stop`, to the bit of torch.linspace: each half is counted from its own end.

    torch fuses the multiplication and the addition; in float64 the product of two float32 numbers is exact.
    """
    if count == 1:
        return np.array([start], np.float32)
    first, last = np.float32(start), np.float32(stop)
    step = (last - first) / np.float32(count - 1)
    index = np.arange(count)
    rising = np.float64(first) + np.float64(step) * index
    falling = np.float64(last) - np.float64(step) * (count - 1 - index)
    return np.where(index < count // 2, rising, falling).astype(np.float32)


def sinusoids(count: int, scale: float, size: int) -> Array:
    """(count, size) sines, then cosines, of places 0..count-1 divided by `scale`; float64 rounded to float32.

    Source: diffusers `get_1d_sincos_pos_embed_from_grid`; Vaswani et al. 2017.
    """
    places = np.arange(count, dtype=np.float32) / np.float32(scale)
    frequencies = 1 / 10000 ** (np.arange(size // 2, dtype=np.float64) / (size / 2))
    angles = np.multiply.outer(places.astype(np.float64), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
