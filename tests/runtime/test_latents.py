"""Oracle: the static methods of diffusers' LTXPipeline, compared bit for bit."""

import numpy as np
import pytest
import torch
from diffusers import LTXPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.errors import RequestError
from telecine.latents import denormalize, mix_decode_noise, normalize, pack, unpack
from telecine.shapes import LatentShape

SHAPES = [(1, 1, 1, 1, 1), (2, 128, 3, 5, 7), (3, 8, 1, 4, 2), (1, 16, 6, 1, 9)]
SCALES = [1.0, 0.7, 1.15258426]
sides = st.integers(1, 5)


def draw(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@given(st.integers(1, 3), sides, sides, sides, sides)
@settings(max_examples=50)
def test_unpack_inverts_pack(batch: int, channels: int, frames: int, height: int, width: int) -> None:
    shape = LatentShape(frames=frames, height=height, width=width)
    latents = draw(shape.array_shape(batch, channels))
    np.testing.assert_array_equal(unpack(pack(latents), shape), latents)


@pytest.mark.parametrize("shape", SHAPES)
def test_packing_matches_diffusers(shape: tuple[int, ...]) -> None:
    latents = draw(shape)
    packed = pack(latents)
    np.testing.assert_array_equal(packed, LTXPipeline._pack_latents(torch.from_numpy(latents)).numpy())
    unpacked = unpack(packed, LatentShape(frames=shape[2], height=shape[3], width=shape[4]))
    expected = LTXPipeline._unpack_latents(torch.from_numpy(packed), *shape[2:])
    np.testing.assert_array_equal(unpacked, expected.numpy())
    assert packed.flags.c_contiguous
    assert unpacked.flags.c_contiguous


def test_a_token_is_one_position() -> None:
    latents = draw((2, 4, 3, 5, 7))
    packed = pack(latents)
    for f, h, w in np.ndindex(3, 5, 7):
        np.testing.assert_array_equal(packed[:, (f * 5 + h) * 7 + w], latents[:, :, f, h, w])


@pytest.mark.parametrize("shape", [(1, 23, 4), (24, 4), (1, 4, 24)])
def test_unpacking_another_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"expected \(batch, 24, channels\), for 2 x 3 x 4 latents"):
        unpack(np.zeros(shape, np.float32), LatentShape(frames=2, height=3, width=4))


@pytest.mark.parametrize("scaling_factor", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_match_diffusers(shape: tuple[int, ...], scaling_factor: float) -> None:
    latents, mean = draw(shape), draw(shape[1:2], 1)
    std = np.abs(draw(shape[1:2], 2)) + np.float32(0.1)
    kept = latents.copy()
    tensors = [torch.from_numpy(array.copy()) for array in (latents, mean, std)]
    for ours, theirs in (
        (normalize, LTXPipeline._normalize_latents),
        (denormalize, LTXPipeline._denormalize_latents),
    ):
        result = ours(latents, mean, std, scaling_factor)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, theirs(*tensors, scaling_factor).numpy())
    np.testing.assert_array_equal(latents, kept)


def test_float64_statistics_do_not_widen_the_latents() -> None:
    latents = draw((1, 3, 1, 2, 2))
    mean, std = [0.1, 0.2, 0.3], [1.1, 1.2, 1.3]  # as JSON gives them
    expected = LTXPipeline._denormalize_latents(torch.from_numpy(latents), torch.tensor(mean), torch.tensor(std))
    result = denormalize(latents, np.array(mean), np.array(std), 1.0)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected.numpy())


@pytest.mark.parametrize("scale", [[0.025, 0.3], [0.0, 1.0]])
def test_decode_noise_matches_diffusers(scale: list[float]) -> None:
    latents, noise = draw((2, 8, 3, 5, 7)), draw((2, 8, 3, 5, 7), 1)
    kept = latents.copy(), noise.copy()
    # LTXPipeline.__call__ has these lines inline
    weight = torch.tensor(scale, dtype=torch.float32)[:, None, None, None, None]
    expected = (1 - weight) * torch.from_numpy(latents) + weight * torch.from_numpy(noise)
    result = mix_decode_noise(latents, noise, np.array(scale))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected.numpy())
    np.testing.assert_array_equal(latents, kept[0])
    np.testing.assert_array_equal(noise, kept[1])


def test_decode_noise_of_another_batch_is_a_bug() -> None:
    latents = draw((2, 8, 1, 2, 2))
    with pytest.raises(AssertionError):
        mix_decode_noise(latents, latents, np.array([0.1]))
    with pytest.raises(AssertionError):
        mix_decode_noise(latents, latents[:1], np.array([0.1, 0.2]))
