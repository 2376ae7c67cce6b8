"""What the jobs told, as tables and as one dict for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from gpu_checks.facts import Facts
from gpu_checks.jobs import Outcome
from telecine.bench.machine import machine
from telecine.bench.spread import Spread

FORMAT = 1
POOLED = ("step", "step_network", "step_host", "text", "decode", "total")
EAGER, COMPILED = "diffusers eager", "torch.compile"
COLUMNS = (
    "", "step, ms", "network, ms", "loop / network", "x eager", "x compile", "decode, s", "video, s", "start-up, s",
    "GPU memory, GB", "host memory, GB",
)  # fmt: skip


def as_json(facts: Facts, outcomes: Sequence[Outcome], settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that is known, whether the run has ended or not."""
    versions = {name: each for outcome in outcomes for name, each in outcome.figures.get("versions", {}).items()}
    return {
        "format": FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine() | asdict(facts),
        "versions": versions,
        "settings": settings,
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "speed": {size: list(rows.values()) for size, rows in speed(outcomes).items()},
    }


def speed(outcomes: Sequence[Outcome]) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows of the speed table by model and size, then by competitor: the samples of all rounds together."""
    told: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for outcome in outcomes:
        if outcome.kind == "speed" and outcome.status == "PASS":
            size, _, rest = outcome.job.partition(": ")
            told.setdefault(size, {}).setdefault(rest.rpartition(", round ")[0], []).append(outcome.figures)
    return {size: _rows({name: _pooled(rounds) for name, rounds in each.items()}) for size, each in told.items()}


def _pooled(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One competitor's figures; a call back to back is of the round that had it quickest."""

    def told(name: str) -> list[float]:
        return [each[name] for each in rounds if each[name] is not None]

    stages = {
        stage: asdict(Spread.of(sample for each in rounds for sample in each["stages"][stage]["samples"]))
        for stage in POOLED
    }
    calls = [each["back_to_back"]["median"] * each["calls_per_step"] for each in rounds if "back_to_back" in each]
    return {
        "stages": stages,
        "start_up": asdict(Spread.of(told("start_up"))) if told("start_up") else None,
        "peak_device_memory": max(told("peak_device_memory")),
        "peak_memory": max(told("peak_memory"), default=None),
        "network_back_to_back": min(calls, default=None),
        "loop_to_network": stages["step"]["median"] / min(calls) if calls else None,
    }


def _rows(pooled: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """With how many times as fast as diffusers each is, at its precision (fp8: at bf16)."""

    def median(name: str) -> float | None:
        return pooled[name]["stages"]["step"]["median"] if name in pooled else None

    rows = {}
    for name, row in pooled.items():
        precision = "fp16" if "fp16" in name else "bf16"
        ratios = {}
        for rival in (EAGER, COMPILED):
            theirs = median(f"{rival} {precision}")
            ratios[rival] = theirs / row["stages"]["step"]["median"] if theirs else None
        rows[name] = {"name": name, **row, "times_as_fast_as": ratios}
    return rows


def as_text(facts: Facts, outcomes: Sequence[Outcome]) -> str:
    return "\n".join([_machine(facts), "", *_outcomes(outcomes), *_speed_tables(outcomes), "", summary(outcomes)])


def line(outcome: Outcome) -> str:
    return f"{outcome.status}  {outcome.job}  ({outcome.seconds:.0f} s)  {outcome.detail}".rstrip()


def summary(outcomes: Sequence[Outcome]) -> str:
    counts = {status: sum(each.status == status for each in outcomes) for status in ("PASS", "FAIL", "SKIP")}
    text = ", ".join(f"{count} {status}" for status, count in counts.items())
    return text if checked(outcomes) else f"{text}: no GPU path was checked"


def checked(outcomes: Sequence[Outcome]) -> bool:
    """Whether a GPU path passed, and nothing failed."""
    passed = any(each.status == "PASS" and each.kind == "check" for each in outcomes)
    return passed and not any(each.status == "FAIL" for each in outcomes)


def _machine(facts: Facts) -> str:
    if facts.gpu is None:
        return f"no GPU: {next(iter(facts.broken.values()), 'none was found')}"
    works = ", ".join(f"{name} {version}".strip() for name, version in facts.works.items())
    return f"{facts.gpu}, sm{facts.capability}, {facts.gpu_memory / 1e9:.0f} GB; {works}"


def _outcomes(outcomes: Sequence[Outcome]) -> list[str]:
    """Of rounds of the speed table only what did not pass: the table has the rest."""
    return [line(outcome) for outcome in outcomes if outcome.kind != "speed" or outcome.status != "PASS"]


def _speed_tables(outcomes: Sequence[Outcome]) -> Iterator[str]:
    for size, rows in speed(outcomes).items():
        yield ""
        yield f"{size}: medians, quartiles in brackets"
        yield f"| {' | '.join(COLUMNS)} |"
        yield f"|{'---|' * len(COLUMNS)}"
        for row in rows.values():
            yield f"| {' | '.join(_cells(row))} |"


def _cells(row: Mapping[str, Any]) -> Iterator[str]:
    step, stages = row["stages"]["step"], row["stages"]
    yield row["name"]
    yield f"{1e3 * step['median']:.1f} ({1e3 * step['low']:.1f}-{1e3 * step['high']:.1f})"
    yield "" if row["network_back_to_back"] is None else f"{1e3 * row['network_back_to_back']:.1f}"
    yield "" if row["loop_to_network"] is None else f"{row['loop_to_network']:.3f}"
    for ratio in row["times_as_fast_as"].values():
        yield "" if ratio is None else f"{ratio:.2f}"
    yield f"{stages['decode']['median']:.2f}"
    yield f"{stages['total']['median']:.2f}"
    yield "" if row["start_up"] is None else f"{row['start_up']['median']:.1f}"
    yield f"{row['peak_device_memory'] / 1e9:.2f}"
    yield "" if row["peak_memory"] is None else f"{row['peak_memory'] / 1e9:.2f}"
