"""A graph's weights in a bundle: where each lies in the weights file, and its values as the checkpoint has them.

Export writes the index, a small JSON file beside each graph, because reading the graph itself would need onnx.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.bundle import Bundle
from telecine.dtypes import FLOAT8_MAX, STORAGE, Floats, from_float32, to_float32
from telecine.errors import BundleError
from telecine.typed_json import build

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Initializer:
    """One weight: its type (a name of `dtypes.STORAGE`), its shape in the graph, and its first byte in the file.

    `transposed`: the graph has the checkpoint's tensor transposed.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    transposed: bool


def dump_index(entries: Mapping[str, Initializer]) -> str:
    """JSON text, a line for each initializer."""
    lines = [f"{json.dumps(name)}: {json.dumps(dataclasses.asdict(entry))}" for name, entry in entries.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_index(path: Path) -> dict[str, Initializer]:
    """
    Raises:
        BundleError: missing, not JSON, or with fields missing, unknown or of another type.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(str(path), f"cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise _damaged(str(path), f"holds {type(content).__name__}")
    entries = {
        name: build(Initializer, entry, where=f"{path}: {name}", damaged=_damaged) for name, entry in content.items()
    }
    for name, entry in entries.items():
        if entry.dtype not in STORAGE:
            raise _damaged(f"{path}: {name}", f"is {entry.dtype}")
    return entries


class GraphWeights:
    """The bundle's own weights of one graph.

    Names and shapes are the checkpoint's: a weight that is stored transposed, or in float8 with a scale for each of
    its output channels beside it, shows as the float32 matrix that it stands for.
    """

    def __init__(self, entries: Mapping[str, Initializer], file: Path, *, origin: Path) -> None:
        self.entries, self.origin = entries, origin
        self._file = file

    @classmethod
    def open(cls, bundle: Bundle, component: str, role: str = "main") -> GraphWeights:
        """
        Raises:
            BundleError: the bundle lacks the graph, or its index is damaged.
        """
        entries = read_index(bundle.path(bundle.graph(component, role).initializers))
        weights = bundle.path(bundle.component(component).weights)
        return cls(entries, weights, origin=bundle.root / component)

    def names(self) -> Collection[str]:
        """The checkpoint's names, without the scales that only the graph has."""
        return [name for name in self.entries if not self._is_scale(name)]

    def __contains__(self, name: str) -> bool:
        return name in self.entries and not self._is_scale(name)

    def shape(self, name: str) -> tuple[int, ...]:
        entry = self.entries[name]
        return entry.shape[::-1] if entry.transposed else entry.shape

    def stored(self, name: str) -> Array:
        """An initializer as the graph has it, read from the file.

        Raises:
            BundleError: the weights file is missing or was cut.
        """
        entry = self.entries[name]
        count = math.prod(entry.shape)
        try:
            values = np.fromfile(self._file, STORAGE[entry.dtype], count=count, offset=entry.offset)
        except OSError as error:
            raise _damaged(str(self._file), f"cannot be read ({error.strerror or error})") from error
        if len(values) != count:
            raise _damaged(str(self._file), f"ends within {name}")
        return values.reshape(entry.shape)

    def load(self, name: str) -> Floats:
        """The values that a weight stands for, as the checkpoint lays them out; a new array.

        Raises:
            BundleError: the weights file is missing or was cut.
        """
        entry = self.entries[name]
        values = to_float32(self.stored(name), entry.dtype)
        scale = scale_name(name)
        if scale in self.entries:
            values *= to_float32(self.stored(scale), self.entries[scale].dtype)
        return values.T if entry.transposed else values

    def store(self, name: str, values: Floats) -> dict[str, Array]:
        """The initializers that stand for a weight's new values: itself and, for float8, the scale that fits them."""
        entry = self.entries[name]
        laid_out = np.ascontiguousarray(values.T if entry.transposed else values)
        scale = scale_name(name)
        if scale not in self.entries:
            return {name: from_float32(laid_out, entry.dtype)}
        scale_entry = self.entries[scale]
        scales = from_float32(_scales(laid_out, scale_entry.shape), scale_entry.dtype)
        # By what the graph will multiply with.
        scaled = np.divide(laid_out, to_float32(scales, scale_entry.dtype), dtype=np.float32)
        return {name: from_float32(scaled, entry.dtype), scale: scales}

    def _is_scale(self, name: str) -> bool:
        return name.endswith(scale_name("")) and name.removesuffix(scale_name("")) in self.entries


def scale_name(name: str) -> str:
    """The initializer that a float8 weight's values are multiplied with; it broadcasts over them as NumPy does."""
    return f"{name}.scale"


def _scales(values: Floats, shape: tuple[int, ...]) -> Floats:
    """Of this shape, which broadcasts over `values`: what maps the largest value of each slice to float8's largest."""
    padded = (1,) * (values.ndim - len(shape)) + shape
    axes = tuple(axis for axis, size in enumerate(padded) if size == 1)
    largest = np.abs(values).max(axis=axes, keepdims=True)
    return np.where(largest > 0, largest / np.float32(FLOAT8_MAX), 1).astype(np.float32).reshape(shape)


def _damaged(where: str, problem: str) -> BundleError:
    return BundleError(
        f"{where} {problem}", expected="the bundle that telecine export wrote", fix="Export or copy the bundle again."
    )
