"""A stand-in for an array that a network will make: what NumPy is asked to do with it is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt
from numpy.lib.mixins import NDArrayOperatorsMixin

from telecine.errors import RequestError
from telecine.plan.program import ELEMENTWISE, Buffer, View, view_of

if TYPE_CHECKING:
    from telecine.plan.recorder import Recorder

Array = npt.NDArray[Any]


class Recorded(NDArrayOperatorsMixin):
    """An array of a program: shape, type and place are known, values are not.

    It behaves as an ndarray does, views and changes in place included, for what plans can hold, and refuses the rest.
    It is no ndarray, so that nothing can take its memory for values.
    """

    def __init__(self, recorder: Recorder, buffer: Buffer, memory: Array, array: Array) -> None:
        """`array` lies where this does in `memory`, the whole buffer's; neither has values."""
        self._recorder, self._buffer, self._memory, self._array = recorder, buffer, memory, array

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @property
    def ndim(self) -> int:
        return self._array.ndim

    @property
    def size(self) -> int:
        return self._array.size

    @property
    def buffer(self) -> Buffer:
        return self._buffer

    @property
    def recorder(self) -> Recorder:
        return self._recorder

    @property
    def view(self) -> View:
        """Where it lies."""
        first = self._array.__array_interface__["data"][0] - self._memory.__array_interface__["data"][0]
        return view_of(self._buffer, self._array, first // self.dtype.itemsize)

    def overlaps(self, other: Recorded) -> bool:
        return bool(np.may_share_memory(self._array, other._array))

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, key: Any) -> Recorded:
        return self._part(self._array[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        part = self[key]
        if not (isinstance(value, Recorded) and value.view == part.view):  # `a[key] += b` has changed it in place
            self._recorder.compute("copy", part, value)

    def reshape(self, *shape: Any) -> Recorded:
        made = self._array.reshape(*shape)
        if made.size and not np.may_share_memory(made, self._array):
            return self.copy().reshape(*shape)
        return self._part(made)

    def transpose(self, *axes: int) -> Recorded:
        return self._part(self._array.transpose(*axes))

    def moved(self, source: int, destination: int) -> Recorded:
        """As `numpy.moveaxis`."""
        return self._part(np.moveaxis(self._array, source, destination))

    def broadcast(self, shape: tuple[int, ...]) -> Recorded:
        """As `numpy.broadcast_to`: a view to read from."""
        return self._part(np.broadcast_to(self._array, shape))

    def copy(self) -> Recorded:
        return self.astype(self.dtype)

    def astype(self, dtype: npt.DTypeLike) -> Recorded:
        return self._recorder.compute("copy", self._recorder.empty(self.shape, dtype), self)

    def _part(self, array: Any) -> Recorded:
        if not isinstance(array, np.ndarray) or (array.size and not np.may_share_memory(array, self._memory)):
            refuse("indexing by arrays or down to a number")
        return Recorded(self._recorder, self._buffer, self._memory, array)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple[Any, ...] = (), dtype: npt.DTypeLike | None = None,
        **options: Any,
    ) -> Recorded:  # fmt: skip
        name = ufunc.__name__
        if method != "__call__" or name not in ELEMENTWISE or options:
            refuse(f"numpy.{name}")
        kind = np.dtype(dtype) if dtype is not None else np.result_type(*(_typed(each) for each in inputs))
        # NumPy rounds before it computes; what it widens, every step does.
        inputs = tuple(each.astype(kind) if _wider(each, kind) else each for each in inputs)
        if not out:
            shape = np.broadcast_shapes(*(np.shape(each) if np.isscalar(each) else each.shape for each in inputs))
            return self._recorder.compute(name, self._recorder.empty(shape, kind), *inputs, dtype=kind)
        if not isinstance(out[0], Recorded):
            return self._over(name, kind, inputs, out[0])
        return self._recorder.compute(name, out[0], *inputs, dtype=kind)

    def _over(self, name: str, kind: np.dtype[Any], inputs: tuple[Any, ...], known: Array) -> Recorded:
        """`known += recorded`, which Python gives the name of the result: a recorded array takes the known one's place.

        Whoever else has the known array would go on with what it was: its values go, and constants without are refused.
        """
        if known is not inputs[0] or known.dtype.kind != "f":
            refuse(f"numpy.{name} into an array that the program does not have")
        made = self._recorder.compute(name, self._recorder.empty(known.shape, known.dtype), *inputs, dtype=kind)
        known.fill(np.nan)
        return made

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        from telecine.plan.functions import FUNCTIONS

        if function not in FUNCTIONS:
            refuse(f"{function.__module__}.{function.__name__}")
        return FUNCTIONS[function](self._recorder, *arguments, **options)

    def __array__(self, *arguments: Any, **options: Any) -> NoReturn:
        refuse("its values")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # Python and NumPy look for protocols that it does not have
            raise AttributeError(name)
        refuse(f"ndarray.{name}")


def _typed(value: Any) -> Any:
    """What `numpy.result_type` takes a value for; a Python number bends to what it is with."""
    return value.dtype if isinstance(value, (Recorded, np.ndarray)) else value


def _wider(value: Any, kind: np.dtype[Any]) -> bool:
    return isinstance(value, Recorded) and not np.can_cast(value.dtype, kind)


def refuse(what: str) -> NoReturn:
    """
    Raises:
        RequestError: a plan cannot hold this.
    """
    raise RequestError(
        f"this request needs {what} of what a network makes",
        expected=f"runs of networks, {', '.join(ELEMENTWISE)}, std and dot: what a plan's steps are",
        fix="Leave out what needs it (LTXConditionPipeline needs its prompt), or make the video in Python.",
    )
