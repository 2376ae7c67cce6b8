"""The index of a graph's weights, which the runtime reads in place of the graph."""

from __future__ import annotations

import onnx_ir as ir

from telecine.initializers import Initializer
from telecine_export.trace import TRANSPOSED


def index_of(model: ir.Model) -> dict[str, Initializer]:
    """Every initializer of the graph that lies in the weights file, in the graph's order."""
    return {
        name: Initializer(
            dtype=str(value.const_value.dtype.numpy()),
            shape=tuple(value.const_value.shape.numpy()),
            offset=value.const_value.offset or 0,
            transposed=TRANSPOSED in value.metadata_props,
        )
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
