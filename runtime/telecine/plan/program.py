"""A plan's program: buffers, views of them, and the steps that a host takes, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# NumPy's functions of one or two operands, element by element, by NumPy's names; `copy` is the operand itself.
ELEMENTWISE = ("copy", "add", "subtract", "multiply", "divide", "minimum", "maximum", "exp", "rint")
# Along the last axis: the unbiased standard deviation of one operand, and the sum of products of two.
REDUCTIONS = ("std", "dot")
# What a program makes: frames or latents, and the sound beside them, or its latents, of models that make some.
RESULT, AUDIO = "result", "audio"


@dataclass(eq=False, slots=True)
class Buffer:
    """A contiguous array of the program. `constant`: its values; `asked`: the host fills it before the first step."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    constant: Array | None = None
    asked: bool = False
    name: str = ""

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def scratch(self) -> bool:
        """Whether the program itself fills it, so that its memory may serve others before and after."""
        return self.constant is None and not self.asked


@dataclass(frozen=True, slots=True)
class View:
    """Part of a buffer, as NumPy's arrays are: a first element, a shape, and elements from one to the next."""

    buffer: Buffer
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        return self.strides == contiguous_strides(self.shape)

    @property
    def whole(self) -> bool:
        return self.offset == 0 and self.shape == self.buffer.shape and self.contiguous


Operand = View | float


@dataclass(frozen=True, slots=True)
class Run:
    """A network runs on contiguous views, by the names of its inputs and outputs."""

    component: str
    role: str
    inputs: Mapping[str, View]
    outputs: Mapping[str, View]

    def reads(self) -> Iterator[View]:
        yield from self.inputs.values()

    def writes(self) -> Iterator[View]:
        yield from self.outputs.values()


@dataclass(frozen=True, slots=True)
class Compute:
    """`out` takes what an operation of `ELEMENTWISE` or `REDUCTIONS` makes of the operands."""

    operation: str
    out: View
    operands: tuple[Operand, ...]

    def reads(self) -> Iterator[View]:
        yield from (each for each in self.operands if isinstance(each, View))

    def writes(self) -> Iterator[View]:
        yield self.out


@dataclass(frozen=True, slots=True)
class Progress:
    """A denoising step is done: its number, of how many, the sigma it began at, and the latents after it.

    `audio_latents` are the sound's, of models that make some.
    """

    step: int
    steps: int
    sigma: float
    latents: View
    audio_latents: View | None = None

    def reads(self) -> Iterator[View]:
        yield self.latents
        if self.audio_latents is not None:
            yield self.audio_latents

    def writes(self) -> Iterator[View]:
        yield from ()


@dataclass(frozen=True, slots=True)
class Emit:
    """A piece of an output: of the "result", frames from `start` on or (`start` 0) latents, or of its "audio"."""

    value: View
    start: int
    output: str = RESULT

    def reads(self) -> Iterator[View]:
        yield self.value

    def writes(self) -> Iterator[View]:
        yield from ()


Step = Run | Compute | Progress | Emit


@dataclass(slots=True)
class Program:
    """The steps, in order."""

    steps: list[Step] = field(default_factory=list)

    def buffers(self) -> list[Buffer]:
        """All that the steps use, in the order of their first use."""
        return list(dict.fromkeys(view.buffer for step in self.steps for view in (*step.reads(), *step.writes())))

    def needed(self) -> Program:
        """The same without steps whose results nobody reads, such as a mask's that a family does not attend by."""
        read: set[Buffer] = set()
        kept: list[Step] = []
        for step in reversed(self.steps):
            if isinstance(step, (Progress, Emit)) or any(view.buffer in read for view in step.writes()):
                read.update(view.buffer for view in step.reads())
                kept.append(step)
        return Program(kept[::-1])


def view_of(buffer: Buffer, array: Array, offset: int = 0) -> View:
    """Where an array lies whose first element is the buffer's at `offset`. Axes of one element have strides of 0."""
    steps = zip(array.shape, array.strides, strict=True)
    return View(buffer, offset, array.shape, tuple(step // array.itemsize if size > 1 else 0 for size, step in steps))


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """As in `view_of`, of an array whose last axis is the innermost."""
    sizes = [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]
    return tuple(step if size > 1 else 0 for size, step in zip(shape, sizes, strict=True))
