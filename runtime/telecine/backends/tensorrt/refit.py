"""New values for an engine's weights, and the bundle's own again, through TensorRT's Refitter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from telecine.backends.tensorrt.library import Library
from telecine.errors import BackendError, BundleError
from telecine.initializers import Initializer, read_initializers


class BundleWeights:
    """The initializers of a graph as the bundle has them: read when first asked for."""

    def __init__(self, graph: Path) -> None:
        self._graph = graph
        self._found: dict[str, Initializer] | None = None

    @property
    def initializers(self) -> dict[str, Initializer]:
        """
        Raises:
            BundleError: the graph is not there (a packed bundle has none), or damaged.
        """
        if self._found is None:
            if not self._graph.is_file():
                raise BundleError(
                    f"{self._graph} is missing",
                    expected="the ONNX graph: an engine's weights are restored from the bundle's",
                    fix="Use the bundle that telecine export wrote, not a pack of engines.",
                )
            self._found = read_initializers(self._graph)
        return self._found

    def read(self, names: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        """The bundle's own values, as NumPy arrays or raw bits where NumPy has no such type.

        Raises:
            BackendError: the graph has no such weights: those of the engine have names of TensorRT's own.
            BundleError: as `initializers`.
        """
        names = list(names)
        unknown = [name for name in names if name not in self.initializers]
        if unknown:
            raise BackendError(
                f"the engine has weights called {', '.join(unknown[:5])}",
                expected="names of the bundle's graph",
                fix="Run: telecine build BUNDLE",
            )
        return {name: self.initializers[name].read() for name in names}


class PreparedRefit:
    """New weights that TensorRT has accepted; `apply` puts them in.

    It keeps them alive: TensorRT has their addresses only.
    """

    def __init__(self, library: Library, refitter: Any, values: Mapping[str, npt.NDArray[Any]]) -> None:
        self._library, self._refitter, self._values = library, refitter, values

    def apply(self) -> None:
        """
        Raises:
            BackendError: TensorRT failed; some weights may have changed.
        """
        if not self._refitter.refit_cuda_engine():
            raise _refused(self._library, "the new weights")


def prepare(
    library: Library,
    engine: Any,
    values: Mapping[str, npt.NDArray[Any]],
    weights: BundleWeights,
    *,
    everything: bool = False,
) -> PreparedRefit:
    """Hand TensorRT these values, and the bundle's own where it must have more: where it joined weights, say.

    `everything`: all that can be refitted, as a stripped plan needs. The engine has what it had until `apply`.

    Raises:
        BackendError: a value belongs to no weights of the engine, or TensorRT refuses one.
        BundleError: the bundle's own are needed and not there.
    """
    refitter = library.module.Refitter(engine, library.log)
    known = set(refitter.get_all_weights())
    unknown = [name for name in values if name not in known]
    if unknown:
        raise BackendError(
            f"the engine has no weights called {', '.join(unknown[:5])}",
            expected="weights that the builder kept by name",
            fix="Run: telecine build BUNDLE --refit",
        )
    given = dict(values)
    if everything:
        given |= weights.read(known - set(given))
    _give(library, refitter, given, weights)
    more = weights.read(name for name in refitter.get_missing_weights() if name not in given)
    _give(library, refitter, more, weights)
    return PreparedRefit(library, refitter, given | more)


def _give(library: Library, refitter: Any, values: Mapping[str, npt.NDArray[Any]], weights: BundleWeights) -> None:
    trt = library.module
    for name, array in values.items():
        kind = library.data_type(weights.initializers[name].dtype)
        if not refitter.set_named_weights(name, trt.Weights(kind, array.ctypes.data, array.size)):
            raise _refused(library, name)


def _refused(library: Library, what: str) -> BackendError:
    return BackendError(
        f"TensorRT refuses {what}: {library.errors()}",
        expected="weights of the engine's own shapes and dtypes",
        fix="Run: telecine build BUNDLE --refit",
    )
