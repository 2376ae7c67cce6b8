"""From `--precision P --component NAME=P` to a plan for each component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from telecine.errors import SourceError
from telecine_export.precision.policy import FP8_BASE, PRECISIONS, Policy, check_precision
from telecine_export.precision.typed import ComponentPlan


def plan_components(
    policies: Mapping[str, Policy], components: Sequence[str], precision: str, own: Mapping[str, str]
) -> dict[str, ComponentPlan]:
    """The plan of each component: its `own` precision, else `precision`; a bundle's fp8 is the base where it has none.

    Raises:
        SourceError: an unknown precision or component, or a component without the precision that was asked for it.
    """
    if precision not in PRECISIONS:
        raise SourceError(
            f"precision {precision}",
            expected=f"one of {', '.join(PRECISIONS)}",
            fix="Export at fp16 if you are not sure: TensorRT and ONNX Runtime both run it.",
        )
    for name in own:
        if name not in components:
            raise SourceError(
                f"a precision for {name}",
                expected=f"one of this source's components: {', '.join(dict.fromkeys(components))}",
                fix="Name components as telecine inspect does.",
            )
        check_precision(name, own[name], policies.get(name, Policy()))
    plans = {}
    for name in components:
        policy = policies.get(name, Policy())
        fallback = FP8_BASE if precision == "fp8" and not policy.quantised else precision
        if policy.only_fp32 is not None:
            fallback = "fp32"
        plans[name] = ComponentPlan(precision=own.get(name, fallback), policy=policy)
    return plans
