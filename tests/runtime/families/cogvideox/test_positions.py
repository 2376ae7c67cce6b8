"""Tables of tokens' places against diffusers', over grids of every shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_sincos_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from hypothesis import given
from hypothesis import strategies as st

from telecine.errors import RequestError
from telecine.families.cogvideox.positions import Place, Rope, Sincos, crop_region, linspace
from telecine.shapes import Grid, LatentShape

# Host math: float32 tables of correctly rounded cosines against torch's own.
TOLERANCE = 1e-6
GRID = Grid(spatial=8, temporal=4, patch=2, chunked=True)
PLACES = [Place(1, 1, 1), Place(2, 3, 5), Place(13, 30, 45), Place(4, 7, 2), Place(3, 45, 30), Place(11, 9, 16)]


def frequencies(size: int) -> np.ndarray:
    return (1.0 / (10000.0 ** (torch.arange(0, size, 2, dtype=torch.float32) / size))).numpy()


def rope(*, rows: int = 30, columns: int = 45, size: int = 64, **fields: Any) -> Rope:
    return Rope(
        rows=rows,
        columns=columns,
        frame_frequencies=frequencies(size // 4),
        side_frequencies=frequencies(size // 8 * 3),
        **{"stretched": True, **fields},
    )


def full(table: np.ndarray) -> np.ndarray:
    """(T, size) of a table with a value a pair."""
    return table.reshape(-1, table.shape[-1]).repeat(2, axis=-1)


@given(*[st.integers(1, 100)] * 4)
def test_the_crop_region_is_diffusers(rows: int, columns: int, base_rows: int, base_columns: int) -> None:
    expected = get_resize_crop_region_for_grid((rows, columns), base_columns, base_rows)
    assert crop_region(rows, columns, base_rows, base_columns) == expected


@given(st.integers(-40, 100), st.floats(-50, 100, allow_nan=False, width=32), st.integers(1, 200))
def test_linspace_is_torchs(start: int, stop: float, count: int) -> None:
    expected = torch.linspace(start, stop, count, dtype=torch.float32).numpy()
    np.testing.assert_allclose(linspace(start, stop, count), expected, rtol=2.0**-22, atol=1e-6)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [16, 64])
def test_stretched_tables_are_diffusers(place: Place, size: int) -> None:
    crops = get_resize_crop_region_for_grid((place.rows, place.columns), 45, 30)
    cos, sin = get_3d_rotary_pos_embed(size, crops, (place.rows, place.columns), place.frames)
    got = rope(size=size).inputs(place)
    assert got["rope_cos"].shape == (*place, size // 2)
    np.testing.assert_allclose(full(got["rope_cos"]), cos.numpy(), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(full(got["rope_sin"]), sin.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("place", PLACES)
def test_counted_tables_are_diffusers(place: Place) -> None:
    cos, sin = get_3d_rotary_pos_embed(
        64, None, (place.rows, place.columns), place.frames, grid_type="slice", max_size=(45, 45)
    )
    got = rope(rows=45, columns=45, stretched=False).inputs(place)
    np.testing.assert_allclose(full(got["rope_cos"]), cos.numpy(), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(full(got["rope_sin"]), sin.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scales", [(1.875, 1.0), (1.0, 2.5)])
def test_sinusoids_are_diffusers(place: Place, scales: tuple[float, float]) -> None:
    expected = get_3d_sincos_pos_embed(64, (place.columns, place.rows), place.frames, *scales).float()
    tables = Sincos(width=64, spatial_scale=scales[0], temporal_scale=scales[1]).inputs(place)
    size = (*place, -1)
    parts = [
        np.broadcast_to(tables["position_frames"][:, None, None], (*place, 16)),
        np.broadcast_to(tables["position_columns"][None, None], (*place, 24)),
        np.broadcast_to(tables["position_rows"][None, :, None], (*place, 24)),
    ]
    got = np.concatenate(parts, axis=-1).reshape(size).reshape(place.frames, -1, 64)
    np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=TOLERANCE)


def test_places_count_tokens() -> None:
    newer = Grid(spatial=8, temporal=4, patch=2, patch_t=2, chunked=True)
    assert Place.of(LatentShape(frames=4, height=6, width=10), newer) == (2, 3, 5)
    assert Place.of(LatentShape(frames=4, height=6, width=10), GRID) == (4, 3, 5)


def test_counted_places_end_where_the_model_was_trained() -> None:
    counted = rope(rows=10, columns=12, stretched=False)
    counted.check(Place(9, 10, 12), 16, 4)
    for place in (Place(1, 11, 3), Place(1, 3, 13)):
        with pytest.raises(RequestError, match="expected at most 192 x 160"):
            counted.check(place, 16, 4)
    rope().check(Place(99, 99, 99), 16, 4)  # stretched places have no end


def test_learned_positions_are_of_one_size() -> None:
    learned = rope(rows=4, columns=6, table_frames=3)
    learned.check(Place(3, 4, 6), 16, 4)
    for place in (Place(2, 4, 6), Place(3, 5, 6), Place(3, 4, 5)):
        with pytest.raises(RequestError, match="learned positions.*Use height=64, width=96, num_frames=9"):
            learned.check(place, 16, 4)
