"""What every backend offers: a graph, loaded, that runs on named arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from telecine.axes import Shape, bind_axes, resolve
from telecine.errors import BackendError
from telecine.manifest import Graph, TensorSpec

if TYPE_CHECKING:
    from telecine.backends.cuda.workspace import Workspace

Buffer = npt.NDArray[Any]
# An array in device memory: an object with `__cuda_array_interface__` or `__dlpack__`, which share no type.
DeviceBuffer = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """What a backend tells of a graph that it has not loaded: the bytes of its weights once it has, those once others
    `replaced` them, `batch_pays` as of its session, and whether it `streams` weights that are not loaded."""

    weights: int
    replaced: int
    batch_pays: bool
    streams: bool = False


class Shaped(Protocol):
    """Something with a shape: an array, wherever it lies."""

    @property
    def shape(self) -> Shape: ...


class Session(ABC):
    """A graph loaded on a backend, ready to run; a context manager that frees it.

    `bind` every input and output, then `enqueue`, as often as wanted: the buffers may be rewritten in between. `run`
    does both with fresh outputs. One call at a time: a `clone` shares the weights for another thread.
    """

    def __init__(self, graph: Graph) -> None:
        self.inputs: dict[str, TensorSpec] = {spec.name: spec for spec in graph.inputs}
        self.outputs: dict[str, TensorSpec] = {spec.name: spec for spec in graph.outputs}

    def empty(self, shape: Shape, dtype: npt.DTypeLike) -> Buffer:
        """A new array for an input or output, of a kind that `bind` uses in place; what it holds is undefined."""
        return np.empty(shape, dtype)

    @abstractmethod
    def bind(self, name: str, buffer: Buffer | DeviceBuffer) -> None:
        """Use this array for an input, or write an output into it, until another is bound.

        A session on a GPU also takes arrays in its memory, and uses them in place.

        Raises:
            BackendError: an unknown name, another dtype, an array that is not contiguous or (for an output) read-only,
                or a closed session.
        """

    @abstractmethod
    def unbind(self) -> None:
        """Let go of every buffer that is bound."""

    @abstractmethod
    def enqueue(self, stream: int = 0) -> None:
        """Run on what is bound. `stream` is a CUDA stream's handle; a CPU session runs at once.

        Raises:
            BackendError: something is not bound, or in a shape that does not fit the rest; the backend failed; out of
                memory says so.
            EngineError: a TensorRT engine has no profile for the shapes.
        """

    @abstractmethod
    def clone(self) -> Session:
        """A session over the same loaded weights, with bindings of its own."""

    @abstractmethod
    def replace(self, weights: Mapping[str, Buffer]) -> None:
        """The named initializers take these values; every other initializer is the bundle's own again.

        An array has the initializer's shape and type as stored: bfloat16 as its bits in uint16, float8 as its bits in
        uint8. It is not changed after. All clones of the session have the new weights, each from its next `enqueue`.

        Raises:
            BackendError: an unknown name, another shape or type, or the backend failed: the session keeps what it had.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what the session holds. A closed session cannot run; closing it again does nothing."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether `close` was called."""

    @property
    def batch_pays(self) -> bool:
        """Whether several rows in one call are quicker than one after the other, when each is large already."""
        return True

    @property
    def workspace(self) -> Workspace | None:
        """Arrays on the device that it runs on, which `bind` uses in place; None where it runs on the host's.

        They are kept with the session, and so are their addresses. Sessions of one device take each other's.
        """
        return None

    def output_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Output shapes by name for input shapes by name.

        Raises:
            BackendError: the input shapes do not fit the graph's contract.
        """
        sizes = bind_axes(self.inputs.values(), shapes)
        return {name: resolve(spec, sizes) for name, spec in self.outputs.items()}

    def run(self, feeds: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Outputs by name for inputs by name; nothing stays bound.

        Raises:
            BackendError: see `output_shapes`, `bind` and `enqueue`.
        """
        self.check_open()
        try:
            arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
            shapes = self.output_shapes({name: array.shape for name, array in arrays.items()})
            results = {name: np.empty(shape, self.outputs[name].dtype) for name, shape in shapes.items()}
        except MemoryError as error:
            raise out_of_memory(f"the inputs and outputs of a graph: {error}") from error
        try:
            for name, array in (arrays | results).items():
                self.bind(name, array)
            self.enqueue()
        finally:
            self.unbind()  # or the session would keep a whole video alive until its next call
        return results

    def check_open(self) -> None:
        """What every use of a session requires."""
        if self.closed:
            raise BackendError("this session is closed", expected="an open one", fix="Load the graph again.")

    def check_name(self, name: str) -> TensorSpec:
        """The input or output of a name, which `bind` requires."""
        spec = self.inputs.get(name) or self.outputs.get(name)
        if spec is None:
            raise BackendError(
                f"no input or output is called {name}",
                expected=f"one of {', '.join([*self.inputs, *self.outputs])}",
                fix="Bind by the graph's own names: telecine inspect shows them.",
            )
        return spec

    def check_buffer(self, name: str, buffer: Buffer) -> None:
        """What `bind` requires of an array on the host, on every backend."""
        spec = self.check_name(name)
        if not isinstance(buffer, np.ndarray):
            problem = type(buffer).__name__
        elif buffer.dtype != np.dtype(spec.dtype):
            problem = str(buffer.dtype)
        elif not (buffer.flags.c_contiguous and buffer.flags.aligned):
            problem = "not contiguous and aligned in memory"
        elif name in self.outputs and not buffer.flags.writeable:
            problem = "read-only, and an output"
        else:
            return
        raise BackendError(
            f"{name} is {problem}",
            expected=f"a contiguous NumPy array of {spec.dtype}",
            fix=f"Convert it: numpy.require(array, {spec.dtype!r}, 'CAW').",
        )

    def check_bound(self, bound: Mapping[str, Shaped]) -> None:
        """What `enqueue` requires on every backend: all is bound, in shapes that fit each other."""
        missing = [name for name in (*self.inputs, *self.outputs) if name not in bound]
        if missing:
            raise BackendError(
                f"{', '.join(missing)} not bound",
                expected="a buffer for every input and output",
                fix="Bind them all before enqueue, or use run.",
            )
        shapes = self.output_shapes({name: bound[name].shape for name in self.inputs})
        for name, shape in shapes.items():
            if bound[name].shape != shape:
                raise BackendError(
                    f"the buffer of {name} has shape {bound[name].shape}",
                    expected=f"{shape}, for the inputs that are bound",
                    fix="Allocate outputs with the shapes that output_shapes gives.",
                )

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def out_of_memory(what: str) -> BackendError:
    """The error of a request that does not fit the machine."""
    return BackendError(
        f"out of memory: {what}",
        expected="a request that fits this machine's memory",
        fix="Ask for fewer frames, a smaller size or a smaller batch, or free memory.",
    )
