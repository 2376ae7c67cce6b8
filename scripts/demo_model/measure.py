"""Measure a clip with plain image code: the object's colour, shape and direction. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo_model.data import COLOURS, DIRECTIONS, SHAPES, Array, distance

LEAST_OBJECT = 40.0  # pixels of 96x96
LEAST_TRAVEL = 6.0  # pixels over the clip; a real one travels 16 or more
LEAST_DIFFERENCE = 0.15  # from the background, of a colour in [0, 1]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What is seen; None where there is no object, or where it does not move."""

    colour: str | None
    shape: str | None
    direction: str | None


def background(clip: Array) -> Array:
    """The plane through the colours of most pixels, (F, H, W, 3) to (H, W, 3): backgrounds are plain or graded."""
    _, height, width, _ = clip.shape
    rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    basis = np.stack([np.ones_like(rows), rows, columns], axis=-1).reshape(-1, 3)
    still = np.median(clip, axis=0).reshape(-1, 3)
    kept = np.ones(len(still), dtype=bool)
    for _ in range(6):
        plane = basis @ np.linalg.lstsq(basis[kept], still[kept], rcond=None)[0]
        off = np.linalg.norm(still - plane, axis=1)
        kept = off <= max(2.5 * float(np.median(off)), 0.02)
    return plane.reshape(height, width, 3).astype(np.float32)


def object_mask(clip: Array) -> Array:
    """(F, H, W) in [0, 1]: how far each pixel is from the background towards the object."""
    difference = np.linalg.norm(clip - background(clip), axis=-1)
    reach = float(np.quantile(difference, 0.98))
    if reach < LEAST_DIFFERENCE:
        return np.zeros_like(difference)
    return np.clip(difference / reach * 2 - 0.5, 0.0, 1.0)  # 0 below a quarter of the way, 1 above three quarters


def centroids(mask: Array) -> tuple[Array, Array, Array]:
    """The object's x, y and area, (F,) each, of the frames where there is one."""
    area = mask.sum(axis=(1, 2))
    seen = mask[area >= LEAST_OBJECT]
    area = area[area >= LEAST_OBJECT]
    rows, columns = (np.arange(size) + 0.5 for size in mask.shape[1:])
    return (seen.sum(axis=1) @ columns) / area, (seen.sum(axis=2) @ rows) / area, area


def direction_of(mask: Array) -> str | None:
    """The direction of the line through the centroids over time."""
    x, y, _ = centroids(mask)
    if len(x) < max(3, len(mask) // 2):
        return None
    time = np.arange(len(x)) - (len(x) - 1) / 2
    travel = np.array([time @ x, time @ y]) / (time @ time) * (len(x) - 1)
    if np.abs(travel).max() < LEAST_TRAVEL:
        return None
    return max(DIRECTIONS, key=lambda name: float(travel @ np.array(DIRECTIONS[name])))


def shape_of(mask: Array) -> str | None:
    """The shape whose ideal outline, of the same area and centroid, overlaps the object's best over all frames."""
    x, y, area = centroids(mask)
    if len(x) == 0:
        return None
    seen = mask[mask.sum(axis=(1, 2)) >= LEAST_OBJECT]
    rows, columns = ((np.arange(size) + 0.5).astype(np.float32) for size in mask.shape[1:])
    dx, dy = columns[None, None, :] - x[:, None, None], rows[None, :, None] - y[:, None, None]
    overlap = {}
    for shape in SHAPES:
        # At radius 1, so that the area is one pixel's: a circle has pi, the others what `distance` gives them.
        unit = {"circle": np.pi, "square": 3.24, "triangle": 2.9228}[shape]
        radius = np.sqrt(area / unit)[:, None, None].astype(np.float32)
        lowered = dy + 0.15 * radius if shape == "triangle" else dy  # its centroid is not its centre
        ideal = np.clip(0.5 - distance(shape, dx.astype(np.float32), lowered.astype(np.float32), radius), 0.0, 1.0)
        overlap[shape] = float(np.minimum(seen, ideal).sum() / np.maximum(seen, ideal).sum())
    return max(overlap, key=lambda name: overlap[name])


def colour_of(clip: Array, mask: Array) -> str | None:
    """The named colour nearest to the mean of the object's core."""
    core = mask > 0.95
    if core.sum() < LEAST_OBJECT:
        return None
    mean = clip[core].mean(axis=0) * 255
    return min(COLOURS, key=lambda name: float(np.linalg.norm(mean - np.array(COLOURS[name]))))


def measure(clip: Array) -> Measurement:
    """Measure (F, H, W, 3) frames in [0, 1]."""
    mask = object_mask(clip)
    return Measurement(colour_of(clip, mask), shape_of(mask), direction_of(mask))
