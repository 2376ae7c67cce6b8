"""Functions of ours that array-likes may take over, as they may NumPy's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


def overridable(function: F) -> F:
    """Let what `function` is called with in an array's place do its work, by NumPy's own protocol (NEP 18).

    For functions that loop over parts of an array to be fast, or look at its values: what only records calls wants
    the one call.
    """

    @functools.wraps(function)
    def call(*arrays: Any) -> Any:
        for array in arrays:
            if not isinstance(array, np.ndarray) and hasattr(array, "__array_function__"):
                return array.__array_function__(call, (type(array),), arrays, {})
        return function(*arrays)

    return call  # type: ignore[return-value]
