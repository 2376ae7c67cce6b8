"""A half-precision graph as a GPU rounds it, for ONNX Runtime's CPU provider: float32 arithmetic, each result rounded.

The provider has no bfloat16 kernels and few of float16: it casts around the others and drops casts between them, so
that what overflows on a GPU does not there. A GPU's kernels sum in float32 and round what they write, which is what the
emulated graph does: each operator computes in float32 and is followed by a cast to half precision and back. A matrix
product and the bias added to it are one kernel, which rounds once, as torch's do.
"""

from __future__ import annotations

import onnx_ir as ir

from telecine_export.precision.assign import MOVES

# What gives integers or booleans of a half.
NOT_FLOATS = ("QuantizeLinear", "Shape", "Size", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
FP32 = ir.DataType.FLOAT


def emulate(model: ir.Model, half: ir.DataType) -> None:
    """Turn a stored model's halves into rounded float32, in place. Its weights are cast where they are read."""
    graph = model.graph
    rounded = _halves(model, half)
    for value in list(graph.initializers.values()):
        if value.dtype == half:
            _widen(graph, value)
    for node in list(graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() == half:
            node.attributes["to"] = ir.AttrInt64("to", FP32)
            _round(graph, node, half)
        elif node.op_type not in MOVES and any(output in rounded for output in node.outputs) and not _awaits_bias(node):
            _round(graph, node, half)
    graph.sort()


def _halves(model: ir.Model, half: ir.DataType) -> set[ir.Value]:
    """The values in half precision. A stored model has no inner types: they follow from parameters and casts."""
    found = {value for value in model.graph.initializers.values() if value.dtype == half}
    for node in model.graph:
        if node.op_type == "Cast":
            if node.attributes["to"].as_int() == half:
                found.update(node.outputs)
        elif node.op_type not in NOT_FLOATS and any(value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def _awaits_bias(node: ir.Node) -> bool:
    """Whether a matrix product goes nowhere but into the addition of a parameter."""
    readers = [use.node for use in node.outputs[0].uses()]
    if node.op_type != "MatMul" or [reader.op_type for reader in readers] != ["Add"]:
        return False
    (other,) = [value for value in readers[0].inputs if value is not node.outputs[0]]
    producer = other.producer() if other is not None else None
    return producer is not None and producer.op_type == "Cast" and _is_parameter(producer.inputs[0])


def _is_parameter(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", dtype)], outputs=[ir.Value(name=name)], name=name)


def _widen(graph: ir.Graph, value: ir.Value) -> None:
    cast = _cast(value, FP32, f"{value.name}.widened")
    value.replace_all_uses_with(cast.outputs[0])
    cast.replace_input_with(0, value)
    graph.insert_before(graph[0], cast)


def _round(graph: ir.Graph, node: ir.Node, half: ir.DataType) -> None:
    (output,) = node.outputs
    down = _cast(output, half, f"{output.name}.rounded")
    up = _cast(down.outputs[0], FP32, f"{output.name}.rounded_float")
    output.replace_all_uses_with(up.outputs[0])
    down.replace_input_with(0, output)
    graph.insert_after(node, [down, up])
