"""A float32 graph → a strongly typed one: parameters in the type that reads them, casts where types meet.

Names of parameters stay. Graph inputs and outputs stay float32: their cast is the graph's first or last node.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from telecine_export.precision.assign import float_inputs, halved, is_float
from telecine_export.precision.policy import DTYPES, Policy


def convert(model: ir.Model, policy: Policy, half: str, kept: Collection[str] = ()) -> None:
    """Give every node of a traced float32 model its type, in place. Modules named in `kept` stay in float32.

    Raises:
        KeyError: `half` is not "fp16" or "bf16".
    """
    chosen = halved(model, policy, half, kept)
    dtype = DTYPES[half]
    typed = _Types(model, dtype)
    for node in list(model.graph):
        wanted = dtype if node in chosen else ir.DataType.FLOAT
        for index, value in list(float_inputs(node)):
            typed.want(node, index, value, wanted)
    for node in chosen:
        for output in node.outputs:
            if is_float(output):
                output.type = ir.TensorType(dtype)
    typed.settle()
    _keep_outputs(model, dtype)
    model.graph.sort()


class _Types:
    """What each value is wanted as, by whom; `settle` makes it so."""

    def __init__(self, model: ir.Model, half: ir.DataType) -> None:
        self._model, self._half = model, half
        self._wanted: dict[ir.Value, dict[ir.DataType, list[tuple[ir.Node, int]]]] = {}

    def want(self, node: ir.Node, index: int, value: ir.Value, dtype: ir.DataType) -> None:
        self._wanted.setdefault(value, {}).setdefault(dtype, []).append((node, index))

    def settle(self) -> None:
        for value, readers in self._wanted.items():
            if value.is_initializer():
                self._store(value, readers)
            for dtype, uses in readers.items():
                if value.dtype != dtype:
                    other = self._copy(value, dtype) if value.const_value is not None else self._cast(value, dtype)
                    for node, index in uses:
                        node.replace_input_with(index, other)

    def _store(self, value: ir.Value, readers: Collection[ir.DataType]) -> None:
        """A parameter or constant that half precision alone reads is stored so; with other readers it stays."""
        if set(readers) == {self._half}:
            value.type = ir.TensorType(self._half)
            if value.const_value is not None:
                value.const_value = _converted(value.const_value, self._half)

    def _copy(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """A constant in another type, beside itself."""
        assert value.const_value is not None
        name = _cast_name(value, dtype)
        initializers = self._model.graph.initializers
        if name not in initializers:
            tensor = _converted(value.const_value, dtype)
            copy = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape, const_value=tensor)
            self._model.graph.register_initializer(copy)
        return initializers[name]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        cast = make_cast(value, dtype, _cast_name(value, dtype))
        producer = value.producer()
        if producer is None:
            self._model.graph.insert_before(self._model.graph[0], cast)
        else:
            self._model.graph.insert_after(producer, cast)
        return cast.outputs[0]


def make_cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    """A Cast of a value, whose output is called `name`."""
    output = ir.Value(name=name, type=ir.TensorType(dtype))
    attributes = [ir.AttrInt64("to", dtype)]
    return ir.Node("", "Cast", [value], attributes, outputs=[output], name=f"cast_{name}")


def _cast_name(value: ir.Value, dtype: ir.DataType) -> str:
    return f"{value.name}.{next(name for name, each in DTYPES.items() if each == dtype)}"


def _converted(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.Tensor:
    """A constant in another type; what is beyond its range (a mask's -3.4e38) becomes its largest value."""
    limits: Any = ml_dtypes.finfo(dtype.numpy())
    values = np.clip(tensor.numpy().astype(np.float32), float(limits.min), float(limits.max))
    return ir.Tensor(values.astype(dtype.numpy()), dtype=dtype, name=tensor.name)


def _keep_outputs(model: ir.Model, half: ir.DataType) -> None:
    """Cast a graph output that half precision computes to float32, under its own name."""
    for index, value in enumerate(list(model.graph.outputs)):
        if value.dtype == half:
            name, shape = value.name, value.shape
            value.name, value.shape = f"{name}.half", None
            producer = value.producer()
            assert name is not None
            assert producer is not None
            cast = make_cast(value, ir.DataType.FLOAT, name)
            cast.outputs[0].shape = shape
            model.graph.insert_after(producer, cast)
            model.graph.outputs[index] = cast.outputs[0]
