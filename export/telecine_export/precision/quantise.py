"""FP8 (E4M3) in the graph: QuantizeLinear and DequantizeLinear around products, weights stored in 8 bits.

Names, for whoever reads or replaces weights (refit, LoRA): a weight keeps the checkpoint's name and is stored as
float8e4m3fn; `NAME.scale` holds its scales, one an output channel (the last axis, as linear layers are stored). The
value is the stored number times its scale. `NAME.activation_scale` is the scale of the activation NAME. Scales have
the type that the product computes in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from telecine_export.precision.channel_scales import FP8_MAX
from telecine_export.precision.products import Fp8Product

FP8 = ir.DataType.FLOAT8E4M3FN
SCALE_SUFFIX = ".scale"
ACTIVATION_SCALE_SUFFIX = ".activation_scale"
# Metadata key of a scale initializer: the weight that it is of.
SCALE_OF = "telecine.scale_of"
# Metadata key of a weight that is stored in FP8: the type of its scales.
SCALE_TYPE = "telecine.scale_type"


def quantise(model: ir.Model, chosen: Sequence[Fp8Product], amax: Mapping[str, float]) -> None:
    """Put the chosen products of a converted model in FP8, in place.

    `amax` is the largest magnitude to represent of each activation, by its name in the traced model.

    Raises:
        KeyError: `amax` lacks an activation.
    """
    nodes = {node.name: node for node in model.graph}
    weights: dict[ir.Value, ir.Value] = {}
    activations: dict[ir.Value, ir.Value] = {}
    for each in chosen:
        node = nodes[each.product.node]
        names = iter(each.product.activations)
        for index, value in enumerate(node.inputs[: 3 if node.op_type == "Attention" else 2]):
            if value is None:
                continue
            if value.is_initializer():
                if value not in weights:
                    weights[value] = _weight(model, value, node)
                node.replace_input_with(index, weights[value])
                continue
            name = next(names)
            if each.scaled:
                if value not in activations:
                    activations[value] = _activation(model, value, name, amax[name])
                node.replace_input_with(index, activations[value])
    model.graph.sort()


def _weight(model: ir.Model, weight: ir.Value, reader: ir.Node) -> ir.Value:
    """A weight that awaits its value, stored in FP8 and dequantised for its reader."""
    assert weight.dtype
    assert weight.shape is not None
    scale = ir.Value(
        name=f"{weight.name}{SCALE_SUFFIX}",
        type=ir.TensorType(weight.dtype),
        shape=ir.Shape([weight.shape[-1]]),
        metadata_props={**weight.metadata_props, SCALE_OF: str(weight.name)},
    )
    model.graph.initializers.add(scale)
    weight.metadata_props[SCALE_TYPE] = weight.dtype.name
    output = ir.Value(name=f"{weight.name}.dequantised", type=ir.TensorType(weight.dtype))
    weight.type = ir.TensorType(FP8)
    node = ir.Node(
        "", "DequantizeLinear", [weight, scale], [ir.AttrInt64("axis", 1)], outputs=[output], name=f"dq_{weight.name}"
    )
    model.graph.insert_before(reader, node)
    return output


def _activation(model: ir.Model, value: ir.Value, name: str, amax: float) -> ir.Value:
    """An activation, rounded to FP8 by one scale."""
    dtype = value.dtype
    producer = value.producer()
    assert dtype
    assert producer is not None
    scale = ir.Value(
        name=f"{name}{ACTIVATION_SCALE_SUFFIX}",
        type=ir.TensorType(dtype),
        shape=ir.Shape([]),
        const_value=ir.tensor(_scale(amax, dtype), dtype=dtype),
    )
    model.graph.register_initializer(scale)
    quantised = ir.Value(name=f"{name}.quantised", type=ir.TensorType(FP8))
    output = ir.Value(name=f"{name}.dequantised", type=ir.TensorType(dtype))
    into = [ir.AttrInt64("output_dtype", FP8)]
    q = ir.Node("", "QuantizeLinear", [value, scale], into, outputs=[quantised], name=f"q_{name}")
    dq = ir.Node("", "DequantizeLinear", [quantised, scale], outputs=[output], name=f"dq_{name}")
    model.graph.insert_after(producer, [q, dq])
    return output


def _scale(amax: float, dtype: ir.DataType) -> np.ndarray:
    """The scale that takes `amax` to FP8's largest value, in a type; an activation that is always 0 has scale 1."""
    smallest = float(np.finfo(np.float16).tiny)
    return np.array(max(amax / FP8_MAX, smallest) if amax > 0 else 1.0).astype(dtype.numpy())
