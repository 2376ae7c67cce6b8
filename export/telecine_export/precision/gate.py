"""The quality gate: what a bundle's precisions cost its pictures, and which modules to blame and to promote."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from telecine.bundle import Bundle
from telecine.errors import RequestError, SourceError
from telecine.manifest import Quality
from telecine.picture_quality import Clip, Comparison, compare_clips
from telecine.pipeline import Pipeline
from telecine_export.graphs import GraphSpec
from telecine_export.precision.calibration import sensitivity
from telecine_export.precision.trial import Trial
from telecine_export.precision.trial_models import TrialModels
from telecine_export.precision.typed import ComponentPlan, Traces

logger = logging.getLogger(__name__)

# PSNR in dB of whole runs, by the lowest precision in a bundle. 40 dB is under half of 1 % of the range: nobody sees
# it. bf16 keeps 3 bits less of each number, E4M3 7 less: what a run decides by noise may then fall out otherwise.
FLOORS: Mapping[str, float] = {"fp16": 40.0, "bf16": 35.0, "fp8": 28.0}
NAMED = 5  # worst modules in a message

Plans = Mapping[str, ComponentPlan]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What an export must reach: PSNR next to float32 in dB, None for the precision's own floor."""

    floor: float | None = None
    auto_promote: bool = False

    def __post_init__(self) -> None:
        if self.floor is not None and not 0 < self.floor < 200:
            raise RequestError(f"floor {self.floor}", expected="decibels above 0", fix="Leave it out for the default.")

    def floor_of(self, plans: Plans) -> float:
        """The lowest of the components' own floors, where none was given."""
        own = (FLOORS[plan.precision] for plan in plans.values() if plan.precision in FLOORS)
        return min(own) if self.floor is None else float(self.floor)  # 5 too is what a manifest has as 5.0


class Judge:
    """Compares candidate bundles with a reference of float32, by the same runs, rounded as a GPU rounds."""

    def __init__(self, reference: Bundle, trial: Trial) -> None:
        self.reference, self.trial = reference, trial
        self._expected = self._clips(TrialModels(reference))

    def compare(self, candidate: Bundle, components: Collection[str]) -> Comparison:
        """Runs with these components from the candidate, the rest float32; of its clips, the one that lost most."""
        models = TrialModels(self.reference, candidate=candidate, candidates=components, as_gpu=True)
        made = self._clips(models)
        every = [compare_clips(clip, expected) for clip, expected in zip(made, self._expected, strict=True)]
        return min(every, key=lambda each: -math.inf if math.isnan(each.psnr) else each.psnr)

    def _clips(self, models: TrialModels) -> list[Clip]:
        with Pipeline(models) as pipe:
            return self.trial.clips(pipe, self.trial.request)


def passes(found: Comparison, floor: float) -> bool:
    return not found.broken and found.psnr >= floor


def pass_gate(
    judge: Judge,
    gate: Gate,
    specs: Sequence[GraphSpec],
    traces: Traces,
    plans: Plans,
    write: Callable[[Plans], Bundle],
) -> Quality:
    """Measure the bundle that `write` makes of the plans; below the floor, name the worst modules or promote them.

    Raises:
        SourceError: below the floor without `auto_promote`, or still with every module promoted.
    """
    floor, bundle = gate.floor_of(plans), write(plans)
    lowered = [name for name, plan in plans.items() if plan.precision != "fp32"]
    first = found = judge.compare(bundle, lowered)
    alone = {name: judge.compare(bundle, [name]) for name in lowered}
    size, promoted = _size(bundle), list[str]()
    while not passes(found, floor):
        ranked = sorted(alone, key=lambda name: -math.inf if alone[name].broken else alone[name].psnr)
        # A component whose modules are all promoted has no more to give.
        named = ((name, _errors(judge, name, specs, traces, plans[name])) for name in ranked)
        worst, errors = next((each for each in named if each[1]), (ranked[0], {}))
        if not gate.auto_promote or not errors:
            raise _below(found, floor, worst, errors, promoted)
        # As many again as were promoted: a few rounds reach every module.
        names = list(errors)[: max(1, len(promoted))]
        logger.warning("PSNR %.1f dB is below %g: promoting %s of %s", found.psnr, floor, ", ".join(names), worst)
        promoted += [f"{worst}/{name}" for name in names]
        plans = {**plans, worst: dataclasses.replace(plans[worst], kept=plans[worst].kept | set(names))}
        bundle = write(plans)
        found = judge.compare(bundle, lowered)
        alone[worst] = judge.compare(bundle, [worst])
    kept = {f"{name}/{module}" for name, plan in plans.items() for module in plan.kept}
    return Quality(
        measured=True,
        floor=floor,
        psnr=_finite(found.psnr),
        ssim=found.ssim,
        temporal_psnr=_finite(found.temporal_psnr),
        components={name: _finite(each.psnr) for name, each in alone.items()},
        kept=tuple(sorted(kept - set(promoted))),
        promoted=tuple(promoted),
        promoted_bytes=_size(bundle) - size,
        promoted_psnr=_finite(first.psnr) if promoted else None,
    )


def _errors(
    judge: Judge, component: str, specs: Sequence[GraphSpec], traces: Traces, plan: ComponentPlan
) -> dict[str, float]:
    """Modules of a component by the error that its precision makes in them, the worst first."""
    errors: dict[str, float] = {}
    for spec in specs:
        if spec.component == component:
            errors |= sensitivity(judge.reference, spec, traces, plan, judge.trial)
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def _below(
    found: Comparison, floor: float, component: str, errors: Mapping[str, float], promoted: Sequence[str]
) -> SourceError:
    if not found.finite:
        what = "NaN or infinity in the frames"
    elif found.black_frames:
        what = f"{found.black_frames} black frames"
    else:
        what = f"PSNR {found.psnr:.1f} dB, SSIM {found.ssim:.3f}"
    worst = ", ".join(f"{name} ({error:.2g})" for name, error in list(errors.items())[:NAMED])
    tried = f", with {len(promoted)} modules promoted" if promoted else ""
    return SourceError(
        f"{what} next to fp32{tried}: {component} loses most; its largest relative errors: {worst or 'none'}",
        expected=f"at least {floor:g} dB",
        fix=f"Pass --auto-promote, --component {component}=fp32, a lower --floor, or --no-gate.",
    )


def _size(bundle: Bundle) -> int:
    return sum(component.weights.size for component in bundle.manifest.components.values())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
