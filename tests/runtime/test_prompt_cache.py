"""The latest prompts' embeddings: the call's own bits, within so many bytes, the ones unused for longest dropped."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from telecine.prompt_cache import PromptCache

SIZE = 4 * 8  # bytes of what `encode` makes


class Encoder:
    """Makes (1, 1, 8) embeddings of (1, L) ids, and counts."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self) -> np.ndarray:
        self.runs += 1
        return np.full((1, 1, 8), self.runs, np.float32)


def ids(*values: int) -> np.ndarray:
    return np.array([values], np.int64)


@pytest.fixture
def encode() -> Encoder:
    return Encoder()


def test_the_same_ids_are_encoded_once(encode: Encoder) -> None:
    cache = PromptCache(10 * SIZE)
    first, again = (cache.embeds(ids(1, 2), encode) for _ in range(2))
    assert first is again
    assert (encode.runs, cache.bytes) == (1, SIZE)
    with pytest.raises(ValueError, match="read-only"):
        first += 1


@pytest.mark.parametrize("other", [ids(1, 3), ids(1), ids(1, 2, 0), ids(1, 2).T.copy(), np.array([[1, 2], [1, 2]])])
def test_other_ids_or_another_shape_are_another_call(encode: Encoder, other: np.ndarray) -> None:
    cache = PromptCache(10 * SIZE)
    assert cache.embeds(ids(1, 2), encode)[0, 0, 0] != cache.embeds(other, encode)[0, 0, 0]


def test_the_one_unused_for_longest_goes_first(encode: Encoder) -> None:
    cache = PromptCache(2 * SIZE + 1)
    for each in (ids(1), ids(2), ids(1), ids(3)):  # 2 goes
        cache.embeds(each, encode)
    assert (encode.runs, cache.bytes) == (3, 2 * SIZE)
    cache.embeds(ids(1), encode)
    assert encode.runs == 3
    cache.embeds(ids(2), encode)
    assert encode.runs == 4


@pytest.mark.parametrize("capacity", [0, SIZE - 1])
def test_what_does_not_fit_is_not_kept(encode: Encoder, capacity: int) -> None:
    cache = PromptCache(capacity)
    for _ in range(2):
        assert cache.embeds(ids(1), encode).flags.writeable
    assert (encode.runs, cache.bytes) == (2, 0)


def test_cleared_it_is_empty(encode: Encoder) -> None:
    cache = PromptCache(10 * SIZE)
    cache.embeds(ids(1), encode)
    cache.clear()
    assert cache.bytes == 0
    assert cache.embeds(ids(1), encode)[0, 0, 0] == 2


def test_threads_that_miss_at_once_count_it_once() -> None:
    cache, barrier = PromptCache(10 * SIZE), threading.Barrier(2)

    def encode() -> np.ndarray:
        barrier.wait(timeout=30)  # both are in here
        return np.zeros((1, 1, 8), np.float32)

    threads = [threading.Thread(target=cache.embeds, args=(ids(1), encode)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.bytes == SIZE
