"""bfloat16 and float8 in NumPy against torch's casts and ml_dtypes' tables: every comparison is of bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.dtypes import FLOAT8_MAX, STORAGE, from_float32, to_float32

TORCH = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8e4m3fn": torch.float8_e4m3fn,
}
HELD = {2: torch.uint16, 1: torch.uint8}


def torch_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """torch's cast, as this module holds it."""
    cast = torch.from_numpy(values.copy()).to(TORCH[dtype])
    return (cast.view(HELD[cast.itemsize]) if dtype in ("bfloat16", "float8e4m3fn") else cast).numpy()


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    np.testing.assert_array_equal(got.view(f"u{got.itemsize}"), want.view(f"u{want.itemsize}"))


def every_exponent() -> np.ndarray:
    """Values in every binade that a type has, their neighbours, and what lies halfway between two."""
    rng = np.random.default_rng(0)
    mantissas = np.concatenate([rng.integers(0, 1 << 23, 40), np.arange(0, 1 << 23, 1 << 18)]).astype(np.uint32)
    bits = (np.arange(255, dtype=np.uint32)[:, None] << 23) | mantissas
    values = bits.ravel().view(np.float32)
    return np.concatenate([values, -values])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_casts_are_torch_s(dtype: str) -> None:
    values = np.append(every_exponent(), np.array([np.inf, -np.inf, 0.0, -0.0], np.float32))
    assert_same_bits(from_float32(values, dtype), torch_bits(values, dtype))


def test_float8_is_torch_s_within_its_range() -> None:
    values = every_exponent()
    values = values[np.abs(values) <= FLOAT8_MAX]
    assert_same_bits(from_float32(values, "float8e4m3fn"), torch_bits(values, "float8e4m3fn"))


def test_float8_beyond_its_range_is_its_largest_value() -> None:
    values = np.array([448.1, 470.0, 1e9, np.inf, -449.0, -np.inf], np.float32)
    got = to_float32(from_float32(values, "float8e4m3fn"), "float8e4m3fn")
    assert got.tolist() == [448.0] * 4 + [-448.0] * 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8e4m3fn"])
def test_no_number_stays_none(dtype: str) -> None:
    nans = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(to_float32(from_float32(nans, dtype), dtype)).all()


@pytest.mark.parametrize(
    ("dtype", "reference"),
    [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16), ("float8e4m3fn", ml_dtypes.float8_e4m3fn)],
)
def test_every_code_and_back(dtype: str, reference: type) -> None:
    """All of a type's values are float32's, and come back as the same bits."""
    held = STORAGE[dtype]
    codes = np.arange(1 << (8 * held.itemsize), dtype=f"u{held.itemsize}")
    values = to_float32(codes.view(held), dtype)
    expected = codes.view(reference).astype(np.float32)
    np.testing.assert_array_equal(values, expected)
    finite = np.isfinite(values)
    assert_same_bits(from_float32(values[finite], dtype), codes.view(held)[finite])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-400, 400, width=32), min_size=1, max_size=9), st.sampled_from(sorted(STORAGE)))
def test_any_layout(numbers: list[float], dtype: str) -> None:
    values = np.array([numbers, numbers[::-1]], np.float32).T  # not contiguous
    assert_same_bits(from_float32(values, dtype), np.asarray(torch_bits(values, dtype)))
    scalar = from_float32(np.float32(numbers[0]).reshape(()), dtype)
    assert scalar.shape == ()
    assert to_float32(scalar, dtype).shape == ()
