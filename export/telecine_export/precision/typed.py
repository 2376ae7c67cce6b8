"""One trace, every precision: a traced float32 model → the model that a bundle stores."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from telecine_export.graphs import GraphSpec
from telecine_export.precision.convert import convert
from telecine_export.precision.policy import Policy, half_of
from telecine_export.precision.products import fp8_products
from telecine_export.precision.quantise import quantise
from telecine_export.trace import seal, trace

# The largest magnitude of each activation, by the name of its value in the traced model.
Amax = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentPlan:
    """How one component is written: its precision, its policy, the modules that are kept out, its activations."""

    precision: str = "fp32"
    policy: Policy = field(default_factory=Policy)
    kept: frozenset[str] = frozenset()
    amax: Mapping[str, Amax] = field(default_factory=dict)  # by role


class Traces:
    """The graphs of one source, each traced once however many precisions are made of it."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self._models: dict[tuple[str, str, bool], ir.Model] = {}

    def get(self, spec: GraphSpec) -> ir.Model:
        """The traced model, not to be changed."""
        key = spec.component, spec.role, spec.fused
        if key not in self._models:
            self._models[key] = trace(spec, opset=self.opset)
        return self._models[key]


def typed(
    traced: ir.Model, precision: str, policy: Policy, *, kept: Collection[str] = (), amax: Amax | None = None
) -> ir.Model:
    """A sealed copy of a traced model at a precision.

    `kept` are modules whose products stay a step higher: at float32 for fp16 and bf16, at the base precision for fp8.

    Raises:
        KeyError: fp8, and `amax` lacks an activation that the policy quantises.
    """
    model = traced.clone()
    if precision != "fp32":
        convert(model, policy, half_of(precision), kept if precision != "fp8" else ())
    if precision == "fp8":
        quantise(model, fp8_products(traced, policy, kept), {} if amax is None else amax)
    seal(model)
    return model
