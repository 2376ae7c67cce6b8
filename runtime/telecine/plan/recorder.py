"""What a run does with arrays that no network has made yet, written down as a program."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.plan.program import RESULT, Buffer, Compute, Emit, Operand, Program, Progress, Run, Step, View, view_of
from telecine.plan.recorded import Recorded, refuse

Array = npt.NDArray[Any]


class Recorder:
    """Collects the steps of a run. Equal constants are one buffer."""

    def __init__(self) -> None:
        self.program = Program()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Buffer] = {}
        self._filled: dict[Buffer, Compute] = {}  # buffers that hold what this step filled them with

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike, *, name: str = "", asked: bool = False) -> Recorded:
        """A new array of the program; `asked`: the host fills it before the first step."""
        memory = np.empty(shape, dtype)  # never read or written: it lends its shape and strides, and takes no pages
        return Recorded(self, Buffer(memory.dtype, memory.shape, asked=asked, name=name), memory, memory)

    def constant(self, values: Array, *, name: str = "") -> View:
        """A view of a buffer with these values."""
        values = np.ascontiguousarray(values)
        if values.dtype.kind == "f" and np.isnan(values).any():
            refuse("a known array that was changed by some")
        key = (values.dtype.str, values.shape, hashlib.sha256(values.data).digest())
        if key not in self._constants:
            self._constants[key] = Buffer(values.dtype, values.shape, constant=values.copy())
        buffer = self._constants[key]
        buffer.name = buffer.name or name
        return view_of(buffer, values)

    def operand(self, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Operand:
        """What a step of `dtype` and of this shape reads: a view, broadcast, or a number."""
        if isinstance(value, Recorded):
            return value.broadcast(shape).view
        array = np.ascontiguousarray(value, dtype)
        first = array.reshape(-1)[0]
        if np.isfinite(first) and (array == first).all():  # JSON has no infinity
            return float(first)
        return view_of(self.constant(array).buffer, np.broadcast_to(array, shape))

    def compute(self, operation: str, out: Recorded, *operands: Any, dtype: npt.DTypeLike | None = None) -> Recorded:
        """Record an operation on arrays and numbers that are `dtype` first (none: `out`'s own)."""
        if out.size == 0:
            return out
        for value in operands:
            if isinstance(value, Recorded) and value.overlaps(out) and value.view != out.view:
                made = self.compute(operation, self.empty(out.shape, out.dtype), *operands, dtype=dtype)
                return self.compute("copy", out, made)
        kind = np.dtype(dtype or out.dtype)
        self.record(Compute(operation, out.view, tuple(self.operand(value, out.shape, kind) for value in operands)))
        return out

    def reduce(self, operation: str, out: Recorded, *operands: Recorded) -> Recorded:
        """Record an operation along the last axis of (B, N) arrays, into (B,)."""
        self.record(Compute(operation, out.view, tuple(each.view for each in operands)))
        return out

    def run(self, component: str, role: str, inputs: Mapping[str, View], outputs: Mapping[str, View]) -> None:
        """Record that a network runs."""
        self.record(Run(component, role, dict(inputs), dict(outputs)))

    def progress(self, step: int, steps: int, sigma: float, latents: Recorded | tuple[Recorded, Recorded]) -> None:
        """Record that a denoising step is done: the callback of `Pipeline.generate`. A pair is of video and sound."""
        views = [each.view for each in (latents if isinstance(latents, tuple) else (latents,))]
        self.record(Progress(step, steps, sigma, *views))

    def emit(self, value: Recorded, start: int, output: str = RESULT) -> None:
        """Record that a part of an output is there."""
        self.record(Emit(value.view, start, output))

    def record(self, step: Step) -> None:
        """Add a step, but one that fills a buffer with the constant that it holds already."""
        if isinstance(step, Compute) and _fills(step):
            if self._filled.get(step.out.buffer) == step:
                return
            self._filled[step.out.buffer] = step
        else:
            for view in step.writes():
                self._filled.pop(view.buffer, None)
        self.program.steps.append(step)


def _fills(step: Compute) -> bool:
    """Whether a step makes the whole of a buffer a constant."""
    value = step.operands[0]
    constant = not isinstance(value, View) or value.buffer.constant is not None
    return step.operation == "copy" and step.out.whole and constant
