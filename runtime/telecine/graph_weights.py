"""A graph's weights in a bundle, as the checkpoint has them: what LoRA files and fine-tunes act on."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.bundle import Bundle
from telecine.dtypes import FLOAT8_MAX, Floats, from_float32, to_float32
from telecine.initializers import Initializer, read_initializers
from telecine.joint_projections import joint_parts

Array = npt.NDArray[Any]
# The least scale of float8 weights, float16's smallest normal number: export's own rule.
LEAST_SCALE = float(np.finfo(np.float16).tiny)


class GraphWeights:
    """The bundle's own weights of one graph.

    Names and shapes are the checkpoint's: a weight that is stored transposed, or in float8 with a scale for each of
    its output channels beside it, shows as the float32 matrix that it stands for; projections that are stored as one
    matrix show one by one.
    """

    def __init__(self, graph: Path, *, origin: Path) -> None:
        """`origin` is for messages.

        Raises:
            BundleError: the graph is missing or damaged.
        """
        self.origin = origin
        everything = read_initializers(graph)
        self._entries = {name: each for name, each in everything.items() if each.inline is None}
        # (initializer, which of its parts, how many it has) by the checkpoint's name.
        self._places = {
            part: (stored, index, len(parts))
            for stored, parts in self.stored().items()
            for index, part in enumerate(parts)
        }

    @classmethod
    def open(cls, bundle: Bundle, component: str, role: str = "main") -> GraphWeights:
        """
        Raises:
            BundleError: the bundle lacks the graph or the weights.
        """
        bundle.check(bundle.component(component).weights, contents=False)
        return cls(bundle.path(bundle.graph(component, role).file), origin=bundle.root / component)

    def names(self) -> Collection[str]:
        """The checkpoint's names, without the scales that only the graph has."""
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        stored, _, count = self._places[name]
        shape = self._shape(stored)
        return shape if count == 1 else (shape[0] // count, *shape[1:])

    def stored(self) -> dict[str, list[str]]:
        """The initializers that hold weights, each with the names of the weights that are its rows, in their order."""
        return {name: joint_parts(name) for name in self._entries if not self._is_scale(name)}

    def initializer(self, name: str) -> Initializer:
        """Where a value of `store` belongs."""
        return self._entries[name]

    def load(self, name: str) -> Floats:
        """The values that a weight stands for, as the checkpoint lays them out; a new array.

        Raises:
            BundleError: the weights file is missing or was cut.
        """
        stored, index, count = self._places[name]
        values = self._load(stored)
        return values if count == 1 else np.split(values, count)[index]

    def _load(self, stored: str) -> Floats:
        entry = self._entries[stored]
        values = to_float32(entry.read(), entry.dtype)
        scale = self._entries.get(scale_name(stored))
        if scale is not None:
            values *= _over_outputs(to_float32(scale.read(), scale.dtype), entry)
        return values.T if entry.transposed else values

    def store(self, name: str, values: Floats) -> dict[str, Array]:
        """The initializers that stand for new values of what `stored` names: it, and for float8 the scales that fit."""
        entry = self._entries[name]
        laid_out = np.require(values.T if entry.transposed else values, np.float32, "C")
        scale = self._entries.get(scale_name(name))
        if scale is None:
            return {name: from_float32(laid_out, entry.dtype)}
        scales = from_float32(_scales(laid_out, entry), scale.dtype)
        # By what the graph will multiply with, which was rounded.
        scaled = np.divide(laid_out, _over_outputs(to_float32(scales, scale.dtype), entry), dtype=np.float32)
        return {name: from_float32(scaled, entry.dtype), scale_name(name): scales}

    def _shape(self, stored: str) -> tuple[int, ...]:
        shape = self._entries[stored].shape
        return shape[::-1] if self._entries[stored].transposed else shape

    def _is_scale(self, name: str) -> bool:
        return name.endswith(scale_name("")) and name.removesuffix(scale_name("")) in self._entries


def scale_name(name: str) -> str:
    """The initializer beside a float8 weight that has its scales, (outputs,); the weight is the product of the two."""
    return f"{name}.scale"


def _outputs_axis(entry: Initializer) -> int:
    return len(entry.shape) - 1 if entry.transposed else 0


def _over_outputs(scales: Floats, entry: Initializer) -> Floats:
    """(outputs,) scales in a shape that multiplies the initializer."""
    shape = [1] * len(entry.shape)
    shape[_outputs_axis(entry)] = -1
    return scales.reshape(shape)


def _scales(values: Floats, entry: Initializer) -> Floats:
    """(outputs,) what takes each output channel's largest value to float8's."""
    others = tuple(axis for axis in range(values.ndim) if axis != _outputs_axis(entry))
    return np.maximum(np.abs(values).max(axis=others) / np.float32(FLOAT8_MAX), np.float32(LEAST_SCALE))
