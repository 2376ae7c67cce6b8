"""Functions of ours that array-likes may take over, as they may NumPy's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def overridable(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """Let the array that `function` is called with do its work, by NumPy's protocol `__array_function__` (NEP 18).

    For functions that loop over parts of an array to be fast: what only records calls wants the one call.
    """

    @functools.wraps(function)
    def call(array: Any) -> T:
        if not isinstance(array, np.ndarray) and hasattr(array, "__array_function__"):
            made: T = array.__array_function__(call, (type(array),), (array,), {})
            return made
        return function(array)

    return call
