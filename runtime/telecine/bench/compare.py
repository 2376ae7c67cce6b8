"""Competitors side by side in one process: interleaved generations, medians by stage, ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from telecine.bench.competitor import Clock, Competitor, Run, now, run
from telecine.bench.settings import Settings
from telecine.bench.spread import Spread, interleaved

Stages = dict[str, Spread]


def compare(
    competitors: Sequence[Competitor],
    settings: Settings,
    *,
    clock: Clock = now,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Medians with spread by competitor and stage, in seconds, and how many times as fast the first is as the others.

    Generations are interleaved, after `warmups` rounds that are not counted.
    """
    runs: dict[str, list[Run]] = {competitor.name: [] for competitor in competitors}
    rounds = settings.warmups + settings.repeats
    for turn, competitor in enumerate(interleaved(competitors, rounds)):
        done = run(competitor, settings, clock)
        counted = turn >= settings.warmups * len(competitors)
        progress(f"{competitor.name}: {done.total[0]:.2f} s{'' if counted else ' (warm-up)'}")
        if counted:
            runs[competitor.name].append(done)
    stages = {name: stages_of(each, settings) for name, each in runs.items()}
    ours = stages[competitors[0].name]
    return {
        "stages": {name: {stage: asdict(spread) for stage, spread in each.items()} for name, each in stages.items()},
        "times_as_fast_as": {competitor.name: ratios(ours, stages[competitor.name]) for competitor in competitors[1:]},
    }


def stages_of(runs: Sequence[Run], settings: Settings) -> Stages:
    """Samples by stage. A step's network and host are a run's means; the other samples of steps are single steps.

    Models without sound have no such stage.
    """
    steps = settings.num_inference_steps
    sound = [each.stages["sound"] for each in runs if "sound" in each.stages]
    samples = {
        "text": [each.stages["text"] for each in runs],
        "step": [wall for each in runs for wall, _ in each.steps],
        "step_network": [each.stages["network"] / steps for each in runs],
        "step_host": [(each.stages["denoise"] - each.stages["network"]) / steps for each in runs],
        "decode": [each.stages.get("decode", 0.0) for each in runs],
        **({"sound": sound} if len(sound) == len(runs) else {}),
        "total": [each.total[0] for each in runs],
        "step_cpu": [cpu for each in runs for _, cpu in each.steps],
        "total_cpu": [each.total[1] for each in runs],
    }
    return {stage: Spread.of(values) for stage, values in samples.items()}


def ratios(ours: Mapping[str, Spread], theirs: Mapping[str, Spread]) -> dict[str, float]:
    """Their median over ours, by stage; a stage that takes no time has none."""
    return {stage: theirs[stage].median / ours[stage].median for stage in ours if ours[stage].median > 0}
