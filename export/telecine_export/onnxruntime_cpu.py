"""A transformer's graph in operators of ONNX Runtime's own, for its CPU provider: same inputs, outputs and weights.

ONNX's `Attention`, and a rotation spelled out, are what TensorRT fuses. ONNX Runtime's CPU kernel of `Attention` holds
all scores at once (9.7 GB at 768x512x121 with guidance); its `MultiHeadAttention` goes through them in tiles, in memory
that grows with the tokens and not with their square. Its `RotaryEmbedding` makes one pass of what takes ten nodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

DOMAIN = "com.microsoft"
HEADS_FIRST = (0, 2, 1, 3)  # (B, T, heads, head size) ↔ (B, heads, T, head size)


def for_onnxruntime_cpu(model: ir.Model) -> ir.Model | None:
    """The same network over the same initializers; None where ONNX Runtime has no operator for a part of it."""
    changed = model.clone()
    graph = changed.graph
    fused = [_fuse_attention(graph, node) for node in list(graph) if node.op_type == "Attention"]
    fused += [_fuse_rotation(graph, node) for node in list(graph) if node.op_type == "Concat"]
    if not any(fused):
        return None
    changed.opset_imports[DOMAIN] = 1
    common.RemoveUnusedNodesPass()(changed)
    return changed


def _fuse_attention(graph: ir.Graph, attention: ir.Node) -> bool:
    """Attention without a bias, over heads split and joined around it → MultiHeadAttention of (B, T, D).

    What is normed or rotated between is joined again before: a copy, where the scores would be many. One with a bias
    stays: MultiHeadAttention would hold its scores too, and a text is short.
    """
    causal, softcap, scale = (attention.attributes.get(name) for name in ("is_causal", "softcap", "scale"))
    if len(attention.inputs) != 3 or (causal and causal.as_int()) or (softcap and softcap.as_float()):
        return False
    splits = [_split_heads(value) for value in attention.inputs]
    joined = _only_user(_only_user(attention, "Transpose"), "Reshape")
    heads = next((split[1] for split in splits if split is not None), None)
    if joined is None or heads is None:
        return False
    operands = [
        split[0] if split is not None else _join_heads(graph, attention, value)
        for split, value in zip(splits, attention.inputs, strict=True)
    ]
    attributes: dict[str, int | float] = {"num_heads": heads}
    if scale is not None:
        attributes["scale"] = scale.as_float()
    _replace(graph, joined, "MultiHeadAttention", operands, attributes)
    return True


def _join_heads(graph: ir.Graph, attention: ir.Node, value: ir.Value | None) -> ir.Value:
    """(B, heads, T, size) → (B, T, D), before the node that reads it."""
    assert value is not None
    transpose = ir.node("Transpose", [value], attributes={"perm": list(HEADS_FIRST)}, name=f"{value.name}_tokens")
    shape = _constant(graph, "joined_heads", np.array([0, 0, -1], np.int64))
    reshape = ir.node("Reshape", [transpose.outputs[0], shape], name=f"{value.name}_joined")
    for node in (transpose, reshape):
        node.outputs[0].name = node.name
    graph.insert_before(attention, [transpose, reshape])
    return reshape.outputs[0]


def _split_heads(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """(B, T, D) and the number of heads, of a value that is Transpose(Reshape(B, T, D))."""
    transpose = _producer(value, "Transpose")
    if transpose is None or tuple(transpose.attributes["perm"].as_ints()) != HEADS_FIRST:
        return None
    reshape = _producer(transpose.inputs[0], "Reshape")
    shape = _producer(reshape.inputs[1], "Concat") if reshape else None
    heads = shape.inputs[2].const_value if shape and len(shape.inputs) == 4 and shape.inputs[2] else None
    if reshape is None or reshape.inputs[0] is None or heads is None:
        return None
    return reshape.inputs[0], int(heads.numpy().item())


def _fuse_rotation(graph: ir.Graph, stack: ir.Node) -> bool:
    """What `patches.rotate` traces to → RotaryEmbedding of (B, T, D), whose pairs are neighbours.

    stack(real * cos - imaginary * sin, imaginary * cos + real * sin), both halves of Reshape(B, T, D / 2, 2).
    """
    halves = [_producer(value, "Unsqueeze") for value in stack.inputs]
    if len(halves) != 2 or halves[0] is None or halves[1] is None:
        return False
    difference, total = _producer(halves[0].inputs[0], "Sub"), _producer(halves[1].inputs[0], "Add")
    flat = _only_user(stack, "Reshape")
    if difference is None or total is None or flat is None:
        return False
    real, cos = _factors(difference.inputs[0])
    imaginary, sin = _factors(difference.inputs[1])
    pairs, others = _pairs(real), _pairs(imaginary)
    if cos is None or sin is None or pairs is None or pairs is not others:
        return False
    _replace(graph, flat, "RotaryEmbedding", [pairs, _first_position(graph), cos, sin], {"interleaved": 1})
    return True


def _factors(product: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None]:
    multiply = _producer(product, "Mul")
    return (None, None) if multiply is None else (multiply.inputs[0], multiply.inputs[1])


def _pairs(half: ir.Value | None) -> ir.Value | None:
    """(B, T, D), of a value that is one of each pair: Squeeze(Slice(Reshape(B, T, D)))."""
    squeeze = _producer(half, "Squeeze")
    cut = _producer(squeeze.inputs[0], "Slice") if squeeze else None
    reshape = _producer(cut.inputs[0], "Reshape") if cut else None
    return reshape.inputs[0] if reshape else None


def _first_position(graph: ir.Graph) -> ir.Value:
    """RotaryEmbedding's position of the first row: cos and sin are those of the tokens, in their order."""
    return _constant(graph, "first_position", np.zeros(1, np.int64))


def _constant(graph: ir.Graph, name: str, values: npt.NDArray[np.int64]) -> ir.Value:
    """An initializer of the graph by this name, made once."""
    if name not in graph.initializers:
        tensor = ir.tensor(values, name=name)
        graph.register_initializer(
            ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape))
        )
    return graph.initializers[name]


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _only_user(node: ir.Node | None, op_type: str) -> ir.Node | None:
    users = [use.node for use in node.outputs[0].uses()] if node else []
    return users[0] if len(users) == 1 and users[0].op_type == op_type else None


def _replace(
    graph: ir.Graph, last: ir.Node, op_type: str, inputs: list[ir.Value], attributes: Mapping[str, int | float]
) -> None:
    """One node of ONNX Runtime's instead of those that end in `last`."""
    old = last.outputs[0]
    new = ir.node(op_type, inputs, attributes=attributes, domain=DOMAIN, name=f"{last.name}_{op_type}")
    new.outputs[0].name = f"{old.name}_{op_type}"
    graph.insert_before(last, new)
    old.replace_all_uses_with(new.outputs[0])
