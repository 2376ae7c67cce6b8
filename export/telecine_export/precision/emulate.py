"""A bf16 graph as ONNX Runtime's CPU provider can run it: float32 arithmetic, each result rounded to bfloat16.

The provider has no bfloat16 kernels. A GPU's kernels sum in float32 and round what they write, which is what the
emulated graph does: each operator computes in float32 and is followed by a cast to bfloat16 and back.
"""

from __future__ import annotations

import onnx_ir as ir

from telecine_export.precision.assign import MOVES

# What gives integers or booleans of bfloat16.
NOT_FLOATS = ("Shape", "Size", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
BF16, FP32 = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def emulate_bf16(model: ir.Model) -> None:
    """Turn a stored model's bfloat16 into rounded float32, in place. Its weights are cast where they are read."""
    graph = model.graph
    rounded = _bf16_values(model)
    for value in list(graph.initializers.values()):
        if value.dtype == BF16:
            _widen(graph, value)
    for node in list(graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() == BF16:
            node.attributes["to"] = ir.AttrInt64("to", FP32)
            _round(graph, node)
        elif node.op_type not in MOVES and any(output in rounded for output in node.outputs):
            _round(graph, node)
    graph.sort()


def _bf16_values(model: ir.Model) -> set[ir.Value]:
    """The values that are bfloat16. A stored model has no inner types: they follow from parameters and casts."""
    found = {value for value in model.graph.initializers.values() if value.dtype == BF16}
    for node in model.graph:
        if node.op_type == "Cast":
            if node.attributes["to"].as_int() == BF16:
                found.update(node.outputs)
        elif node.op_type not in NOT_FLOATS and any(value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", dtype)], outputs=[ir.Value(name=name)], name=name)


def _widen(graph: ir.Graph, value: ir.Value) -> None:
    cast = _cast(value, FP32, f"{value.name}.widened")
    value.replace_all_uses_with(cast.outputs[0])
    cast.replace_input_with(0, value)
    graph.insert_before(graph[0], cast)


def _round(graph: ir.Graph, node: ir.Node) -> None:
    (output,) = node.outputs
    down = _cast(output, BF16, f"{output.name}.rounded")
    up = _cast(down.outputs[0], FP32, f"{output.name}.rounded_float")
    output.replace_all_uses_with(up.outputs[0])
    down.replace_input_with(0, output)
    graph.insert_after(node, [down, up])
