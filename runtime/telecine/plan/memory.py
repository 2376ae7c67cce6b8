"""Which memory a program's buffers lie in: those that are never needed at once share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from telecine.plan.program import Buffer, Program


@dataclass(frozen=True, slots=True)
class Allocations:
    """Blocks of so many bytes, and the block of every buffer that the program fills itself."""

    blocks: tuple[int, ...]
    block_of: Mapping[Buffer, int]


def allocate(program: Program) -> Allocations:
    """A block for each buffer, from the step that first touches it to the last: the smallest free one that it fits,
    or a new one."""
    last = {view.buffer: index for index, step in enumerate(program.steps) for view in (*step.reads(), *step.writes())}
    blocks: list[int] = []
    free: set[int] = set()
    block_of: dict[Buffer, int] = {}
    for index, step in enumerate(program.steps):
        touched = dict.fromkeys(view.buffer for view in (*step.writes(), *step.reads()) if view.buffer.scratch)
        for buffer in touched:
            if buffer in block_of:
                continue
            fitting = [number for number in free if blocks[number] >= buffer.bytes]
            if fitting:
                block_of[buffer] = min(fitting, key=lambda number: blocks[number])
                free.remove(block_of[buffer])
            else:
                block_of[buffer] = len(blocks)
                blocks.append(buffer.bytes)
        free.update(block_of[buffer] for buffer in touched if last[buffer] == index)
    return Allocations(tuple(blocks), block_of)
