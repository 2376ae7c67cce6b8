"""Oracle: diffusers' LTXVideoRotaryPosEmbed; positions bit for bit, cosines and sines within an ulp of 1."""

import math

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed

from telecine.errors import RequestError
from telecine.rope import RopeTables, expand, grid_index, make_tables, video_positions
from telecine.shapes import Grid, LatentShape

LTX = Grid(spatial=32, temporal=8)
RATES = [1, 8, 23.976, 24, 25, 30000 / 1001, 30, 60.0]
SHAPES = [(1, 1, 1), (1, 5, 7), (4, 3, 2), (6, 9, 5), (21, 2, 3)]


def latent(shape: tuple[int, int, int]) -> LatentShape:
    return LatentShape(frames=shape[0], height=shape[1], width=shape[2])


def torch_frequencies(inner_dim: int) -> np.ndarray:
    """The vector that a bundle ships, in the words of LTXVideoRotaryPosEmbed.forward."""
    theta = 10000.0
    exponents = torch.linspace(math.log(1.0, theta), math.log(theta, theta), inner_dim // 6, dtype=torch.float32)
    return (theta**exponents * math.pi / 2.0).numpy()


def oracle(inner_dim: int, shape: tuple[int, int, int], grid: Grid, rate: float) -> tuple[np.ndarray, ...]:
    module = LTXVideoRotaryPosEmbed(inner_dim)
    scale = (grid.temporal / rate, grid.spatial, grid.spatial)
    cos, sin = module(torch.zeros(1, 1), *shape, rope_interpolation_scale=scale)
    return cos[0].numpy(), sin[0].numpy()


@pytest.mark.parametrize("grid", [LTX, Grid(spatial=4, temporal=4)])
@pytest.mark.parametrize("rate", RATES)
def test_positions_match_diffusers_bit_for_bit(rate: float, grid: Grid) -> None:
    shape = (41, 30, 17)
    module = LTXVideoRotaryPosEmbed(32)
    scale = (grid.temporal / rate, grid.spatial, grid.spatial)
    coords = module._prepare_video_coords(1, *shape, rope_interpolation_scale=scale, device="cpu")
    expected = coords[0].numpy()
    positions, index = video_positions(latent(shape), grid, rate), grid_index(latent(shape))
    for axis in range(3):
        assert positions[axis].dtype == np.float32
        np.testing.assert_array_equal(positions[axis][index[:, axis]], expected[:, axis])


@pytest.mark.parametrize("rate", [24, 30000 / 1001])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inner_dim", [6, 32, 64, 2048, 4096])
def test_expanded_tables_match_diffusers(inner_dim: int, shape: tuple[int, int, int], rate: float) -> None:
    tables = make_tables(
        video_positions(latent(shape), LTX, rate), grid_index(latent(shape)), torch_frequencies(inner_dim)
    )
    cos, sin = expand(tables, inner_dim)
    expected_cos, expected_sin = oracle(inner_dim, shape, LTX, rate)
    assert cos.shape == sin.shape == (latent(shape).tokens, inner_dim)
    assert cos.dtype == sin.dtype == np.float32
    np.testing.assert_allclose(cos, expected_cos, rtol=0, atol=1.2e-7)
    np.testing.assert_allclose(sin, expected_sin, rtol=0, atol=1.2e-7)


def test_arbitrary_coordinates_match_diffusers() -> None:
    """Conditioning frames bring coordinates that no grid has: diffusers takes them as `video_coords`."""
    rng = np.random.default_rng(0)
    coords = np.stack([rng.choice(rng.uniform(0, 20, 5), 40), rng.choice(2048, 40), rng.choice(9, 40) * 32])
    fractions = coords.astype(np.float32) / np.float32([[20], [2048], [2048]])
    distinct = [np.unique(axis, return_inverse=True) for axis in fractions]
    tables = make_tables(
        tuple(values for values, _ in distinct),
        np.stack([inverse for _, inverse in distinct], axis=1),
        torch_frequencies(2048),
    )
    assert tables.index.dtype == np.int32
    video_coords = torch.from_numpy(coords.astype(np.float32))[None]
    expected = LTXVideoRotaryPosEmbed(2048)(torch.zeros(1, 1), video_coords=video_coords)
    for ours, theirs in zip(expand(tables, 2048), expected, strict=True):
        np.testing.assert_allclose(ours, theirs[0].numpy(), rtol=0, atol=1.2e-7)


def test_table_layout() -> None:
    shape = latent((4, 3, 2))
    tables = make_tables(video_positions(shape, LTX, 25), grid_index(shape), torch_frequencies(64))
    assert tables.cos.shape == tables.sin.shape == (3, 4, 10)
    assert tables.index.shape == (24, 3)
    assert tables.cos.dtype == tables.sin.dtype == np.float32
    # rows that an axis does not have are the identity rotation
    for axis, used in enumerate((4, 3, 2)):
        np.testing.assert_array_equal(tables.cos[axis, used:], 1)
        np.testing.assert_array_equal(tables.sin[axis, used:], 0)
        np.testing.assert_allclose(tables.cos[axis] ** 2 + tables.sin[axis] ** 2, 1, atol=2e-7)


def test_grid_index_is_the_order_of_packed_tokens() -> None:
    index = grid_index(latent((3, 4, 5)))
    assert index.dtype == np.int32
    assert index.flags.c_contiguous
    np.testing.assert_array_equal(index, list(np.ndindex(3, 4, 5)))


def test_expand_orders_columns_by_frequency_then_axis() -> None:
    cos = np.arange(12, dtype=np.float32).reshape(3, 2, 2)  # 3 axes, 2 coordinates, 2 frequencies
    tables = RopeTables(cos=cos, sin=-cos, index=np.array([[1, 0, 1]], np.int32))
    expanded_cos, expanded_sin = expand(tables, 14)
    t, y, x = cos[0, 1], cos[1, 0], cos[2, 1]
    expected = np.repeat([t[0], y[0], x[0], t[1], y[1], x[1]], 2)
    np.testing.assert_array_equal(expanded_cos[0], [1, 1, *expected])
    np.testing.assert_array_equal(expanded_sin[0], [0, 0, *-expected])


def test_expanding_to_another_width_is_a_bug() -> None:
    tables = make_tables(
        video_positions(latent((1, 1, 1)), LTX, 25), grid_index(latent((1, 1, 1))), torch_frequencies(64)
    )
    with pytest.raises(AssertionError):
        expand(tables, 32)


@pytest.mark.parametrize("rate", [0, -24, math.nan, math.inf])
def test_bad_frame_rates(rate: float) -> None:
    with pytest.raises(RequestError, match="frame_rate is"):
        video_positions(latent((1, 1, 1)), LTX, rate)
