"""Which nodes of a float32 graph compute in half precision: by the policy, and so that few casts are needed."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from telecine_export.precision.policy import Policy
from telecine_export.trace import MODULE

# What moves, repeats or selects values without computing: exact in every type.
MOVES = frozenset({
    "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
# What makes floats of other things: its output is float32.
MAKERS = frozenset({"Cast", "ConstantOfShape", "Range", "Constant"})


def module_of(node: ir.Node) -> str:
    return node.metadata_props.get(MODULE, "")


def is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def float_inputs(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """(index, value) of the inputs that have the type that a node computes in."""
    for index, value in enumerate(node.inputs):
        if value is not None and is_float(value) and not (node.op_type == "Resize" and index > 0):
            yield index, value


def halved(model: ir.Model, policy: Policy, half: str, kept: Collection[str] = ()) -> set[ir.Node]:
    """The nodes that compute in half precision. Modules named in `kept` do not.

    What only moves values takes the type of what it moves; where only half precision follows, it is cast before it is
    moved, which moves less.
    """
    chosen: set[ir.Node] = set()
    moves: list[ir.Node] = []
    for node in model.graph:
        if node.op_type in MAKERS or not (any(map(is_float, node.outputs)) or any(float_inputs(node))):
            continue
        module = module_of(node)
        rule = policy.rule(module, node.op_type, half)
        if module in kept:
            continue
        if node.op_type in MOVES and not (rule and node.op_type in rule.operators):
            moves.append(node)
            if not _all_float32(node, chosen):
                chosen.add(node)
        elif rule is None or rule.half:
            chosen.add(node)
    _follow_consumers(moves, chosen)
    return chosen


def _all_float32(node: ir.Node, chosen: Collection[ir.Node]) -> bool:
    """Whether all that a node moves was computed in float32; parameters and constants have no type of their own yet."""
    computed = [value for _, value in float_inputs(node) if not value.is_initializer()]
    return bool(computed) and all(value.producer() not in chosen for value in computed)


def _follow_consumers(moves: list[ir.Node], chosen: set[ir.Node]) -> None:
    """From the graph's end: float32 that only half precision reads becomes half, parameters that float32 reads do not.

    Parameters alone (a table that is unsqueezed) take the wider type of what reads them.
    """
    for node in reversed(moves):
        (output,) = node.outputs[:1]
        readers = [use.node for use in output.uses()]
        if output.is_graph_output() or not readers:
            continue
        only_parameters = all(value.is_initializer() for _, value in float_inputs(node))
        if all(reader in chosen for reader in readers):
            chosen.add(node)
        elif only_parameters:
            chosen.discard(node)
