"""What ONNX stores and NumPy lacks: bfloat16 as its bits in uint16, float8 (E4M3) as its bits in uint8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

# ONNX's name of a type → how an array of it is held.
STORAGE: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "float8e4m3fn": np.dtype(np.uint8),
}
FLOAT8_MAX = 448.0
# E4M3: a sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinity, and NaN where all but the sign are set.
_MANTISSA, _BIAS, _NAN = 3, 7, 0x7F
_SMALLEST_NORMAL = 2.0 ** (1 - _BIAS)


def to_float32(stored: Array, dtype: str) -> Floats:
    """(...) of a stored type → the same values in float32, exactly; a new array."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if dtype == "float8e4m3fn":
        return _FLOAT8_VALUES[stored]
    return stored.astype(np.float32)


def from_float32(values: Floats, dtype: str) -> Array:
    """(...) float32 → a stored type, rounded to the nearest (ties to even), as torch casts.

    Beyond its range float16 and bfloat16 give infinity, float8 its largest value: it has no infinity.
    """
    if dtype == "bfloat16":
        return _to_bfloat16(values)
    if dtype == "float8e4m3fn":
        return _to_float8(values)
    with np.errstate(over="ignore"):
        return values.astype(STORAGE[dtype])


def _to_bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    bits = np.require(values, np.float32, "C").view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16  # half of the last place, less one where it is even
    # Rounding up would carry a NaN's bits into the sign.
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def _to_float8(values: Floats) -> npt.NDArray[np.uint8]:
    flat = values.reshape(-1)  # NumPy's scalars would warn of what arrays do silently
    sign = (flat.view(np.uint32) >> 24) & 0x80
    size = np.where(np.isnan(flat), 0, np.minimum(np.abs(flat), np.float32(FLOAT8_MAX)))
    bits = size.view(np.uint32)
    dropped = 23 - _MANTISSA
    normal = (bits + (((bits >> dropped) & 1) + ((1 << (dropped - 1)) - 1))) >> dropped
    normal -= (127 - _BIAS) << _MANTISSA
    # Below the normal values the last place is fixed: adding a number with that last place rounds to it.
    magic = np.float32(_SMALLEST_NORMAL * 2.0 ** (23 - _MANTISSA))
    small = (size + magic).view(np.uint32) - magic.view(np.uint32)
    code = np.where(size < _SMALLEST_NORMAL, small, normal)
    return (np.where(np.isnan(flat), _NAN, code) | sign).astype(np.uint8).reshape(values.shape)


def _float8_values() -> Floats:
    """(256,) the value of each code."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> _MANTISSA) & 0xF, (codes & 7) / 8.0
    size = np.where(exponent > 0, (1 + mantissa) * 2.0 ** (exponent - _BIAS), mantissa * _SMALLEST_NORMAL)
    size[codes & _NAN == _NAN] = np.nan
    return np.where(codes & 0x80, -size, size).astype(np.float32)


_FLOAT8_VALUES = _float8_values()
