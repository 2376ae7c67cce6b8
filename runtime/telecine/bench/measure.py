"""A whole benchmark: what was asked for, measured one after the other, as one dict for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from telecine.bench.compare import compare
from telecine.bench.competitor import Competitor
from telecine.bench.fresh import measure_fresh
from telecine.bench.host import host_step
from telecine.bench.installed import installed
from telecine.bench.machine import machine
from telecine.bench.rates import measured_rates
from telecine.bench.settings import Settings
from telecine.bench.spread import Spread, interleaved
from telecine.bench.sweep import sweep
from telecine.bundle import Bundle
from telecine.families import FAMILIES

FORMAT = 1
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What to measure beside the generations of `competitors`, of which this runtime is the first.

    `processes`: module and path of the fresh process of each. `fresh`: how many of each tell start-up and memory.
    `installed`: requirements by competitor. `step_flops`, of one step, asks for the machine's rates; `most_tokens` asks
    for the growth up to so many.
    """

    competitors: Sequence[Callable[[], Competitor]]
    processes: Mapping[str, tuple[str, str]]
    fresh: int = 0
    installed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    step_flops: int | None = None
    host: bool = False
    most_tokens: int | None = None


def measure(bundle: Bundle, settings: Settings, asked: Measurement, *, progress: Progress) -> dict[str, Any]:
    """Results by their kind, with machine, versions and settings.

    Raises:
        RequestError, BackendError: a competitor cannot run this.
    """
    results: dict[str, Any] = {
        "format": FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "settings": dataclasses.asdict(settings),
        "model": _model(bundle),
    }
    # Fresh processes before anything is loaded here: they have the machine's memory to themselves.
    if asked.fresh:
        results["fresh"] = _fresh(asked, settings, progress)
    if asked.most_tokens:
        grid = FAMILIES[bundle.manifest.family].grid(bundle.manifest.host)
        results["sweep"] = sweep(asked.processes, settings, grid, most_tokens=asked.most_tokens, progress=progress)
    competitors = [make() for make in asked.competitors]
    results["versions"] = {name: each for other in competitors for name, each in other.versions().items()}
    results |= compare(competitors, settings, progress=progress)
    if asked.installed:
        results["installed"] = {name: installed(each) for name, each in asked.installed.items()}
    if asked.step_flops is not None:
        rates = measured_rates(settings)
        results["roofline"] = {
            "rates": rates,
            "step_flops": asked.step_flops,
            "reached": {
                name: asked.step_flops / stages["step_network"]["median"] / rates["matmul"]
                for name, stages in results["stages"].items()
            },
        }
    if asked.host:
        results["host"] = host_step()
    return results


def _fresh(asked: Measurement, settings: Settings, progress: Progress) -> dict[str, Any]:
    told: dict[str, list[dict[str, float]]] = {name: [] for name in asked.processes}
    for name in interleaved(list(asked.processes), asked.fresh):
        told[name].append(measure_fresh(*asked.processes[name], settings))
        progress(f"{name}, fresh: {told[name][-1]['start_up']:.2f} s to the first step")
    return {
        name: {key: dataclasses.asdict(Spread.of(each[key] for each in runs)) for key in runs[0]}
        for name, runs in told.items()
    }


def _model(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    components = {
        name: {"precision": part.precision, "opset": part.opset, "parameters": part.parameters}
        for name, part in manifest.components.items()
    }
    return {"family": manifest.family, "variant": manifest.variant, "components": components}
