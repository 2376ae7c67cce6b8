"""Buffers that share memory are never needed at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from telecine.plan.memory import allocate
from telecine.plan.program import Buffer, Compute, Program, view_of


def program(sizes: list[int], steps: list[tuple[int, int]]) -> Program:
    """Steps that copy from one buffer to another, by their numbers; the first buffer is a constant."""
    arrays = [np.zeros(size, np.float32) for size in sizes]
    buffers = [Buffer(each.dtype, each.shape, constant=None if index else each) for index, each in enumerate(arrays)]
    views = [view_of(buffer, array) for buffer, array in zip(buffers, arrays, strict=True)]
    return Program([Compute("copy", views[out], (views[source],)) for source, out in steps])


@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=8).flatmap(
        lambda sizes: st.tuples(
            st.just(sizes),
            st.lists(
                st.tuples(st.integers(0, len(sizes) - 1), st.integers(1, len(sizes) - 1)), min_size=1, max_size=12
            ),
        )
    )
)
def test_lives_in_one_block_do_not_meet(drawn: tuple[list[int], list[tuple[int, int]]]) -> None:
    made = program(*drawn)
    allocations = allocate(made)
    lives: dict[Buffer, list[int]] = {}
    for index, step in enumerate(made.steps):
        for view in (*step.reads(), *step.writes()):
            lives.setdefault(view.buffer, []).append(index)
    scratch = [buffer for buffer in lives if buffer.constant is None]
    assert set(allocations.block_of) == set(scratch)
    for buffer in scratch:
        block = allocations.block_of[buffer]
        assert allocations.blocks[block] >= buffer.bytes
        for other in scratch:
            if other is not buffer and allocations.block_of[other] == block:
                assert max(lives[buffer]) < min(lives[other]) or max(lives[other]) < min(lives[buffer])


def test_a_chain_takes_two_blocks() -> None:
    chain = program([4] * 10, [(index, index + 1) for index in range(9)])
    assert allocate(chain).blocks == (16, 16)
