"""FP8's scales and its sensitive layers, found by runs of the real denoising loop at float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import onnx_ir as ir

from telecine.backends.base import Buffer
from telecine.bundle import Bundle
from telecine.errors import RequestError, SourceError
from telecine.pipeline import Pipeline
from telecine_export.graphs import GraphSpec
from telecine_export.precision.assign import halved
from telecine_export.precision.policy import half_of
from telecine_export.precision.probes import AMAX, ERROR, add_amax, add_errors
from telecine_export.precision.products import Product, fp8_products, products
from telecine_export.precision.trial import Trial
from telecine_export.precision.trial_models import MadeSession, TrialModels
from telecine_export.precision.typed import ComponentPlan, Traces

# A module whose product loses this many times what the median one loses is left at the base precision.
SENSITIVE = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How activations' scales are found; what is None is the family's.

    `percentile` of an activation's magnitudes is what FP8's largest number stands for, the largest over all calls: 100
    is amax, 99.99 lets one value in ten thousand saturate.
    """

    prompts: tuple[str, ...] | None = None
    percentile: float = 100.0

    def __post_init__(self) -> None:
        if not 90 <= self.percentile <= 100:
            raise RequestError(
                f"calibration percentile {self.percentile}",
                expected="a number from 90 to 100",
                fix="Use 100 for amax, or 99.99.",
            )
        if self.prompts is not None and not any(prompt.strip() for prompt in self.prompts):
            raise RequestError(
                "no prompt to calibrate with", expected="at least one", fix="Leave it out for the built-in prompts."
            )

    @classmethod
    def read(cls, prompts: Path | None, percentile: float) -> Calibration:
        """With the prompts of a file, one a line; none takes the family's.

        Raises:
            RequestError: the file cannot be read or has no prompt, or the percentile is out of range.
        """
        if prompts is None:
            return cls(percentile=percentile)
        try:
            lines = prompts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(
                f"{prompts} cannot be read: {error}",
                expected="a text file with a prompt on each line",
                fix="Check the path given to --calibration-prompts.",
            ) from error
        return cls(prompts=tuple(line for line in lines if line.strip()), percentile=percentile)


def calibrate(
    reference: Bundle,
    specs: Sequence[GraphSpec],
    traces: Traces,
    plans: Mapping[str, ComponentPlan],
    trial: Trial,
    calibration: Calibration,
) -> dict[str, ComponentPlan]:
    """The plans, with what their fp8 components need: activations' magnitudes, and sensitive modules kept out."""
    watched = [spec for spec in specs if plans[spec.component].precision == "fp8"]
    if not watched:
        return dict(plans)
    found = _magnitudes(reference, watched, traces, plans, trial, calibration)
    ready = dict(plans)
    for spec in watched:
        name, amax = spec.component, found[spec.component, spec.role]
        plan = dataclasses.replace(ready[name], amax={**ready[name].amax, spec.role: amax})
        errors = sensitivity(reference, spec, traces, plan, trial)
        if not errors:
            raise SourceError(
                f"fp8 for {name}: none of its products can be quantised",
                expected="linear layers that the family's policy names",
                fix=f"Export it at fp16: --component {name}=fp16.",
            )
        typical = median(errors.values())
        sensitive = {module for module, error in errors.items() if error > SENSITIVE * typical}
        ready[name] = dataclasses.replace(plan, kept=plan.kept | sensitive)
    return ready


def _magnitudes(
    reference: Bundle,
    watched: Sequence[GraphSpec],
    traces: Traces,
    plans: Mapping[str, ComponentPlan],
    trial: Trial,
    calibration: Calibration,
) -> dict[tuple[str, str], dict[str, float]]:
    found: dict[tuple[str, str], dict[str, float]] = {}
    sessions = {}
    for spec in watched:
        chosen = fp8_products(traces.get(spec), plans[spec.component].policy)
        names = dict.fromkeys(name for each in chosen if each.scaled for name in each.product.activations)
        key = spec.component, spec.role
        found[key] = dict.fromkeys(names, 0.0)
        probe = partial(add_amax, activations=list(names), percentile=calibration.percentile)
        sessions[key] = _probed(reference, spec, probe, _largest(found[key], AMAX))
    requests = trial.calibration(reference.manifest.host)
    with Pipeline(TrialModels(reference, sessions=sessions)) as pipe:
        for prompt in calibration.prompts or trial.prompts:
            for request in requests:
                for seed in trial.seeds:
                    pipe.generate(**{**request, "prompt": prompt, "seed": seed})
    return found


def sensitivity(
    reference: Bundle, spec: GraphSpec, traces: Traces, plan: ComponentPlan, trial: Trial
) -> dict[str, float]:
    """The relative error that a plan's precision makes of each module's product by itself, the worst first.

    The gate's own runs at float32 feed it, so that errors upstream do not count.
    """
    traced = traces.get(spec)
    amax = plan.amax.get(spec.role, {})
    chosen = _lowered(traced, plan)
    errors: dict[str, float] = {}
    session = _probed(
        reference,
        spec,
        partial(add_errors, products=chosen, precision=plan.precision, amax=amax),
        _largest(errors, ERROR),
    )
    with Pipeline(TrialModels(reference, sessions={(spec.component, spec.role): session})) as pipe:
        trial.clips(pipe, trial.request)
    of_module: dict[str, float] = {}
    for product in chosen:
        of_module[product.module] = max(of_module.get(product.module, 0.0), errors.get(product.node, 0.0))
    return dict(sorted(of_module.items(), key=lambda item: -item[1]))


def _lowered(traced: ir.Model, plan: ComponentPlan) -> list[Product]:
    """The products that a plan computes below float32 (fp16, bf16) or in FP8."""
    if plan.precision == "fp8":
        return [each.product for each in fp8_products(traced, plan.policy, plan.kept)]
    lowered = {node.name for node in halved(traced, plan.policy, half_of(plan.precision), plan.kept)}
    return [product for product in products(traced) if product.node in lowered]


def _probed(
    reference: Bundle, spec: GraphSpec, probe: Callable[[ir.Model], None], seen: Callable[..., None]
) -> MadeSession:
    graph = reference.graph(spec.component, spec.role)
    path = reference.path(graph.file)
    model = ir.load(path)
    probe(model)
    return MadeSession(graph, model, str(path.parent), seen)


def _largest(into: dict[str, float], prefix: str) -> Callable[[Mapping[str, Buffer]], None]:
    """Keep the largest value that each probe gives; what is not finite counts as infinite."""

    def seen(values: Mapping[str, Buffer]) -> None:
        for output, value in values.items():
            name = output.removeprefix(prefix)
            magnitude = float(value) if np.isfinite(value) else float("inf")
            into[name] = max(into.get(name, 0.0), magnitude)

    return seen
