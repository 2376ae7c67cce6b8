"""The initializers of an ONNX graph, read without the onnx package: names, types, shapes, and values on demand.

Source: onnx.proto (ModelProto, GraphProto, TensorProto) and protobuf's wire format. Graphs are those that telecine
export writes: large values lie in the component's weights file, small ones in the graph as `raw_data`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from telecine.errors import BackendError, BundleError

# TensorProto.DataType → its name, and NumPy's type of the same bits: NumPy has no bfloat16 and no float8.
TYPES = {
    1: ("float32", "<f4"),
    2: ("uint8", "u1"),
    3: ("int8", "i1"),
    4: ("uint16", "<u2"),
    5: ("int16", "<i2"),
    6: ("int32", "<i4"),
    7: ("int64", "<i8"),
    9: ("bool", "?"),
    10: ("float16", "<f2"),
    11: ("float64", "<f8"),
    12: ("uint32", "<u4"),
    13: ("uint64", "<u8"),
    16: ("bfloat16", "<u2"),
    17: ("float8e4m3fn", "u1"),
}
MODEL_GRAPH, GRAPH_INITIALIZER, GRAPH_VALUE_INFO = 7, 5, 13  # field numbers
DIMS, DATA_TYPE, NAME, RAW_DATA, EXTERNAL_DATA = 1, 2, 8, 9, 13
VALUE_NAME, VALUE_METADATA = 1, 4
TRANSPOSED = "telecine.transposed"  # metadata key of an initializer whose values are the checkpoint's, transposed
Field: TypeAlias = "tuple[int, int | memoryview]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Initializer:
    """(shape) values of a graph, in `file` from `offset` on, or `inline`. `dtype` is ONNX's name for the type.

    `transposed`: export stored the checkpoint's tensor so.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: np.dtype[Any]
    file: Path
    offset: int
    inline: bytes | None
    transposed: bool

    def holds(self, dtype: np.dtype[Any]) -> bool:
        """Whether an array of this dtype has its type: by name (ml_dtypes' too), or as bare bits without one."""
        return dtype == self.bits or dtype.name.replace("_", "") == self.dtype.replace("_", "")

    def read(self) -> npt.NDArray[Any]:
        """(shape) values, mapped from the file; bfloat16 and float8 as unsigned integers of their size.

        Raises:
            BundleError: the file is missing or cut.
        """
        if self.inline is not None:
            return np.frombuffer(self.inline, self.bits).reshape(self.shape)
        try:
            return np.memmap(self.file, self.bits, mode="r", offset=self.offset, shape=self.shape or (1,)).reshape(
                self.shape
            )
        except (OSError, ValueError) as error:
            raise _damaged(self.file, f"does not hold {self.name}: {error}") from error


def read_initializers(graph: Path) -> dict[str, Initializer]:
    """Every initializer of a graph, by name.

    Raises:
        BundleError: the graph cannot be read, or is not one that telecine export wrote.
    """
    try:
        content = memoryview(graph.read_bytes())
        parts = [
            (number, _bytes(value))
            for field, model in _fields(content)
            if field == MODEL_GRAPH
            for number, value in _fields(_bytes(model))
            if number in (GRAPH_INITIALIZER, GRAPH_VALUE_INFO)
        ]
        transposed = {name for number, value in parts if number == GRAPH_VALUE_INFO for name in _transposed(value)}
        found = [_initializer(value, graph, transposed) for number, value in parts if number == GRAPH_INITIALIZER]
    except OSError as error:
        raise _damaged(graph, f"cannot be read ({error.strerror or error})") from error
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise _damaged(graph, f"is not an ONNX graph as telecine writes it ({error})") from error
    return {each.name: each for each in found}


def widest_layer(graph: Path) -> int:
    """Outputs of the largest linear layer or convolution of a graph: values of its widest activation, a row.

    Raises:
        BundleError: as `read_initializers`.
    """
    values = read_initializers(graph).values()
    linear = (each.shape[1] for each in values if each.transposed and len(each.shape) == 2)
    convolutions = (each.shape[0] for each in values if len(each.shape) >= 3)
    return max((*linear, *convolutions), default=0)


def _transposed(value_info: memoryview) -> Iterator[str]:
    """The name of a value, if it is marked as transposed."""
    name = ""
    marked = False
    for number, value in _fields(value_info):
        if number == VALUE_NAME:
            name = str(_bytes(value), "utf-8")
        elif number == VALUE_METADATA:
            marked |= any(_bytes(part) == TRANSPOSED.encode() for _, part in _fields(_bytes(value)))
    if marked:
        yield name


def _initializer(tensor: memoryview, graph: Path, transposed: Collection[str]) -> Initializer:
    shape: list[int] = []
    name, kind, inline = "", 0, None
    where: dict[str, str] = {}
    for number, value in _fields(tensor):
        if number == DIMS:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif number == DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == NAME:
            name = str(_bytes(value), "utf-8")
        elif number == RAW_DATA:
            inline = bytes(_bytes(value))
        elif number == EXTERNAL_DATA:
            key, text = (str(_bytes(part), "utf-8") for _, part in _fields(_bytes(value)))
            where[key] = text
    dtype, bits = TYPES[kind][0], np.dtype(TYPES[kind][1])
    size = math.prod(shape) * bits.itemsize
    if (int(where["length"]) if where else len(inline or b"")) != size:
        raise ValueError(f"{name} is not {size} bytes of raw or external data")
    location = Path(where.get("location", graph.name))
    if location.is_absolute() or ".." in location.parts:
        raise ValueError(f"{name} lies outside of the bundle, in {location}")
    return Initializer(
        name=name, dtype=dtype, shape=tuple(shape), bits=bits, file=graph.parent / location,
        offset=int(where.get("offset", 0)), inline=None if where else inline,
        transposed=name in transposed,
    )  # fmt: skip


def _fields(message: memoryview) -> Iterator[Field]:
    """(field number, value) of a message: numbers as int, everything else as bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(message, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if place + size > len(message):
            raise ValueError("it is cut")
        yield number, message[place : place + size]
        place += size


def _varints(packed: memoryview) -> list[int]:
    values, place = [], 0
    while place < len(packed):
        value, place = _varint(packed, place)
        values.append(value)
    return values


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A base-128 number and the place after it."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise TypeError("a number where a message belongs")
    return value


def _damaged(path: Path, problem: str) -> BundleError:
    return BundleError(
        f"{path} {problem}", expected="a file that telecine export wrote", fix="Export or copy the bundle again."
    )


def check_weights(weights: Mapping[str, npt.NDArray[Any]], initializers: Mapping[str, Initializer]) -> None:
    """What `Session.replace` requires on every backend; `initializers` are the graph's.

    Raises:
        BackendError: an unknown name, another shape or dtype.
    """
    for name, array in weights.items():
        entry = initializers.get(name)
        if entry is None or entry.inline is not None:
            problem, expected = "no weight of the graph is called so", "names of the graph's weights"
        elif array.shape != entry.shape or not entry.holds(array.dtype):
            problem, expected = f"{array.dtype} of shape {array.shape}", f"{entry.dtype} of shape {entry.shape}"
        else:
            continue
        raise BackendError(f"{name}: {problem}", expected=expected, fix="Use weights of this model.")
