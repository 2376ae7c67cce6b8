"""What a text encoder made of the latest prompts, so that a repeated one need not run it, or even load it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Key = tuple[tuple[int, ...], bytes]


class PromptCache:
    """(B, L, D) embeddings by their (B, L) token ids, up to `capacity` bytes: the ones unused for longest go first.

    A key is all that one call of the encoder was given, so that what is kept has the bits that the call would make.
    Clones of a pipeline share it across threads.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Array] = OrderedDict()
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """What is kept now."""
        return self._bytes

    def embeds(self, input_ids: npt.NDArray[Any], encode: Callable[[], Array]) -> Array:
        """(B, L) ids → (B, L, D), read only where they are kept; `encode` makes what is not there."""
        if not self.capacity:
            return encode()
        key = _key(input_ids)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = encode()  # without the lock: two threads that miss at once both run, each its own session
        if made.nbytes <= self.capacity:
            self._keep(key, made)
        return made

    def clear(self) -> None:
        """Forget all: the encoder's weights are others."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _keep(self, key: Key, made: Array) -> None:
        made.flags.writeable = False
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = made
            self._bytes += made.nbytes
            while self._bytes > self.capacity:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes


def _key(input_ids: npt.NDArray[Any]) -> Key:
    return input_ids.shape, input_ids.tobytes()
