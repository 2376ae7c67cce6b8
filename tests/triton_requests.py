"""Requests as Triton's clients send them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]


def text(*values: str) -> np.ndarray:
    return np.array([value.encode() for value in values], object)


def as_json(value: Any) -> np.ndarray:
    return text(json.dumps(value))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
