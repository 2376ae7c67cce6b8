"""What every backend offers: a graph, loaded, that runs on named arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.axes import Shape, bind_axes, resolve
from telecine.errors import BackendError
from telecine.manifest import Graph, TensorSpec

Buffer = npt.NDArray[Any]


class Session(ABC):
    """A graph loaded on a backend, ready to run; a context manager that frees it.

    `bind` every input and output, then `enqueue`; `run` does both with fresh outputs. One call at a time: a `clone`
    shares the weights for another thread.
    """

    def __init__(self, graph: Graph) -> None:
        self.inputs: dict[str, TensorSpec] = {spec.name: spec for spec in graph.inputs}
        self.outputs: dict[str, TensorSpec] = {spec.name: spec for spec in graph.outputs}

    @abstractmethod
    def bind(self, name: str, buffer: Buffer) -> None:
        """Use this array for an input, or write an output into it, until another is bound.

        Raises:
            BackendError: an unknown name, another dtype, or an array that is not contiguous.
        """

    @abstractmethod
    def enqueue(self, stream: int = 0) -> None:
        """Run on what is bound. `stream` is a CUDA stream's handle; a CPU session runs at once.

        Raises:
            BackendError: the backend failed; out of memory says so.
        """

    @abstractmethod
    def clone(self) -> Session:
        """A session over the same loaded weights, with bindings of its own."""

    @abstractmethod
    def close(self) -> None:
        """Free what the session holds. A closed session cannot run."""

    def output_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Output shapes by name for input shapes by name.

        Raises:
            BackendError: the input shapes do not fit the graph's contract.
        """
        sizes = bind_axes(self.inputs.values(), shapes)
        return {name: resolve(spec, sizes) for name, spec in self.outputs.items()}

    def run(self, feeds: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Outputs by name for inputs by name.

        Raises:
            BackendError: see `output_shapes`, `bind` and `enqueue`.
        """
        shapes = self.output_shapes({name: array.shape for name, array in feeds.items()})
        try:
            results = {name: np.empty(shape, self.outputs[name].dtype) for name, shape in shapes.items()}
        except MemoryError as error:
            raise out_of_memory(f"the outputs {shapes}") from error
        for name, array in feeds.items():
            self.bind(name, np.ascontiguousarray(array))
        for name, array in results.items():
            self.bind(name, array)
        self.enqueue()
        return results

    def check_buffer(self, name: str, buffer: Buffer) -> None:
        """What `bind` requires on every backend."""
        spec = self.inputs.get(name) or self.outputs.get(name)
        if spec is None:
            raise BackendError(
                f"no input or output is called {name}",
                expected=f"one of {', '.join([*self.inputs, *self.outputs])}",
                fix="Bind by the graph's own names: telecine inspect shows them.",
            )
        if buffer.dtype != np.dtype(spec.dtype) or not buffer.flags.c_contiguous:
            raise BackendError(
                f"{name} is {buffer.dtype}, {'' if buffer.flags.c_contiguous else 'not '}contiguous",
                expected=f"a contiguous array of {spec.dtype}",
                fix="Convert it: numpy.ascontiguousarray(array, dtype).",
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
