"""`telecine export`'s options about precision: which, what it may cost, and how that is found out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def precision_options(command: F) -> F:
    """--precision and what belongs to it; `precision_parameters` reads them."""
    for option in reversed(
        (
            click.option("--precision", default="fp32", show_default=True, help="fp32, fp16, bf16 or fp8."),
            click.option("--component", "own", multiple=True, metavar="NAME=P", help="Another for one component."),
            click.option("--floor", type=float, help="PSNR next to fp32 that must be reached, in dB."),
            click.option("--auto-promote", is_flag=True, help="Below it, keep the worst modules in higher precision."),
            click.option("--no-gate", is_flag=True, help="Do not measure what the precision costs."),
            click.option("--calibration-prompts", type=click.Path(path_type=Path), help="fp8: a prompt on each line."),
            click.option("--calibration-percentile", type=float, help="fp8: of activations; 100 (default) is amax."),
            click.option("--reference", type=click.Path(path_type=Path), help="SOURCE's bundle at fp32, if there is."),
        )
    ):
        command = option(command)
    return command


def precision_parameters(options: dict[str, Any]) -> dict[str, Any]:
    """Takes `precision_options` out of a command's options, as parameters of `export_bundle`.

    Raises:
        click.UsageError: options that contradict each other.
        RequestError: a value out of range, or prompts that cannot be read.
    """
    from telecine_export.precision.calibration import Calibration
    from telecine_export.precision.gate import Gate

    no_gate, floor, auto_promote = (options.pop(name) for name in ("no_gate", "floor", "auto_promote"))
    prompts, percentile = options.pop("calibration_prompts"), options.pop("calibration_percentile")
    own = options.pop("own")
    if no_gate and (floor is not None or auto_promote):
        raise click.UsageError("--floor and --auto-promote are for the gate that --no-gate skips.")
    if wrong := [word for word in own if "=" not in word]:
        raise click.UsageError(f"--component {wrong[0]}: write NAME=PRECISION.")
    calibration = None
    if prompts is not None or percentile is not None:
        calibration = Calibration.read(prompts, 100.0 if percentile is None else percentile)
    return {
        "precision": options.pop("precision"),
        "components": dict(word.split("=", 1) for word in own),
        "gate": None if no_gate else Gate(floor=floor, auto_promote=auto_promote),
        "calibration": calibration,
        "reference": options.pop("reference"),
    }
