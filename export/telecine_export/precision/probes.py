"""Extra outputs of a float32 graph: how large activations get, and what rounding does to each product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np
import onnx_ir as ir

from telecine_export.precision.channel_scales import FP8_MAX
from telecine_export.precision.policy import DTYPES
from telecine_export.precision.products import Product
from telecine_export.precision.quantise import FP8

FP32 = ir.DataType.FLOAT
AMAX, ERROR = "amax:", "error:"


class GraphWriter:
    """Appends nodes to a graph, a method call a node."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.values = {value.name: value for node in self.graph for value in node.outputs}
        self.values |= {value.name: value for value in self.graph.inputs}
        self.values |= dict(self.graph.initializers.items())
        self._number = count()

    def add(self, operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        name = f"probe_{next(self._number)}"
        output = ir.Value(name=name)
        attrs = [ir.AttrInt64(key, value) for key, value in attributes.items()]
        self.graph.append(ir.Node("", operator, inputs, attrs, outputs=[output], name=name))
        return output

    def constant(self, values: object, dtype: ir.DataType = FP32) -> ir.Value:
        name = f"probe_{next(self._number)}"
        tensor = ir.tensor(np.array(values, dtype.numpy()), dtype=dtype, name=name)
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def output(self, value: ir.Value, name: str) -> None:
        """Give a scalar out of the graph as `name`."""
        renamed = self.add("Identity", value)
        renamed.name, renamed.type, renamed.shape = name, ir.TensorType(FP32), ir.Shape([])
        self.graph.outputs.append(renamed)


def add_amax(model: ir.Model, activations: Sequence[str], percentile: float) -> None:
    """Give each activation's largest magnitude, or a percentile of its magnitudes, as the output `amax:NAME`."""
    writer = GraphWriter(model)
    for name in activations:
        magnitudes = writer.add("Abs", writer.values[name])
        if percentile >= 100:
            largest = writer.add("ReduceMax", magnitudes, keepdims=0)
        else:
            flat = writer.add("Reshape", magnitudes, writer.constant([-1], ir.DataType.INT64))
            size = writer.add("Cast", writer.add("Size", magnitudes), to=FP32)
            above = writer.add("Mul", size, writer.constant(1 - percentile / 100))
            rank = writer.add("Max", writer.add("Ceil", above), writer.constant(1.0))
            k = writer.add("Cast", rank, to=ir.DataType.INT64)
            k = writer.add("Reshape", k, writer.constant([1], ir.DataType.INT64))
            largest = writer.add("ReduceMin", _top(writer, flat, k), keepdims=0)
        writer.output(largest, AMAX + name)


def _top(writer: GraphWriter, flat: ir.Value, k: ir.Value) -> ir.Value:
    values, indices = ir.Value(name=f"{flat.name}_top"), ir.Value(name=f"{flat.name}_top_indices")
    writer.graph.append(ir.Node("", "TopK", [flat, k], outputs=[values, indices], name=f"{flat.name}_top"))
    return values


def add_errors(model: ir.Model, products: Sequence[Product], precision: str, amax: Mapping[str, float]) -> None:
    """Give the relative error that a precision makes of each product, as the output `error:NODE`.

    The product is computed once more of rounded inputs and weight; the error is its root mean square difference from
    the float32 one, over that one's root mean square. fp8 rounds activations that `amax` has, and weights by column.
    """
    writer = GraphWriter(model)
    nodes = {node.name: node for node in model.graph}
    for product in products:
        node = nodes[product.node]
        inputs = [value if value is None else _rounded(writer, value, precision, amax) for value in node.inputs]
        output = ir.Value(name=f"{product.node}.again")
        attributes = list(node.attributes.values())
        writer.graph.append(ir.Node("", node.op_type, inputs, attributes, outputs=[output], name=output.name))
        again = output if precision == "fp8" else _cast_round(writer, output, DTYPES[precision])
        exact = node.outputs[0]
        difference = writer.add("Sub", again, exact)
        ratio = writer.add("Div", _power(writer, difference), _power(writer, exact))
        writer.output(writer.add("Sqrt", ratio), ERROR + product.node)


def _power(writer: GraphWriter, value: ir.Value) -> ir.Value:
    return writer.add("ReduceSumSquare", value, keepdims=0)


def _rounded(writer: GraphWriter, value: ir.Value, precision: str, amax: Mapping[str, float]) -> ir.Value:
    if precision != "fp8":
        return _cast_round(writer, value, DTYPES[precision])
    largest_seen = amax.get(str(value.name))
    if largest_seen is not None:
        scale = writer.constant(max(largest_seen, 1e-6) / FP8_MAX)
        return _through_fp8(writer, value, scale)
    if value.is_initializer() and value.shape is not None and len(value.shape) == 2:
        axes = writer.constant([0], ir.DataType.INT64)
        largest = writer.add("ReduceMax", writer.add("Abs", value), axes, keepdims=0)
        scale = writer.add("Max", writer.add("Div", largest, writer.constant(FP8_MAX)), writer.constant(1e-9))
        return _through_fp8(writer, value, scale, axis=1)
    return value


def _cast_round(writer: GraphWriter, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    return writer.add("Cast", writer.add("Cast", value, to=dtype), to=FP32)


def _through_fp8(writer: GraphWriter, value: ir.Value, scale: ir.Value, **axis: int) -> ir.Value:
    quantised = writer.add("QuantizeLinear", value, scale, output_dtype=FP8, **axis)
    return writer.add("DequantizeLinear", quantised, scale, **axis)
