"""export, verify, inspect, doctor. Heavy imports stand inside the commands: --help needs click alone."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from telecine.cli.group import json_option, main, print_json
from telecine.cli.precision import precision_options, precision_parameters

F = TypeVar("F", bound=Callable[..., Any])


def source_options(command: F) -> F:
    """What SOURCE may be made of: the parameters of `open_source`, and an upscaler beside."""
    for option in reversed(
        (
            click.option("--revision", help="Revision of a hub id."),
            click.option("--transformer", help="Instead of SOURCE's: folder, hub id, .safetensors or .gguf."),
            click.option("--vae", help="Instead of SOURCE's: folder, hub id or .safetensors."),
            click.option("--text-encoder", help="T5 with its tokenizer: folder, hub id; T5 alone: .safetensors."),
            click.option("--upscaler", help="Latent upsampler to add: folder, hub id or original .safetensors."),
            click.option("--lora", "loras", multiple=True, help="FILE or FILE=SCALE, fused; repeat for several."),
        )
    ):
        command = option(command)
    return command


def _open(source: str, *, upscaler: str | None, **parts: Any) -> Any:
    """The source of `source_options`."""
    from telecine_export.families.upscaler import with_upscaler
    from telecine_export.source import open_source

    opened = open_source(source, **parts)
    return opened if upscaler is None else with_upscaler(opened, upscaler)


@main.command()
@click.argument("source")
@click.argument("bundle", type=click.Path(path_type=Path))
@source_options
@precision_options
@click.option("--opset", type=int, default=23, show_default=True, help="ONNX opset: 23, or 20 for older TensorRT.")
@click.option("--fuse-qkv", "fuse", is_flag=True, help="One matrix product for an attention's projections.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that exists, once the new one is whole.")
@json_option
def export(source: str, bundle: Path, opset: int, fuse: bool, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Turn SOURCE (a diffusers folder, a hub id, or an original .safetensors file) into the folder BUNDLE."""
    from telecine.inspection import quality_lines
    from telecine_export.export import ComponentReport, export_bundle
    from telecine_export.family import family_of
    from telecine_export.progress import progress_bars

    precision = precision_parameters(options)
    opened = _open(source, **options)
    family = family_of(opened)
    found = [f"{family.name} {family.variant(opened)}, {opened.pipeline_class}", *opened.describe()]
    click.echo("\n".join(found), err=True)
    reports: list[ComponentReport] = []
    with progress_bars(reports.append) as progress:
        made = export_bundle(
            opened, bundle, opset=opset, fuse=fuse, overwrite=overwrite, progress=progress, **precision
        )
    if as_json:
        components = [dataclasses.asdict(report) for report in reports]
        quality = dataclasses.asdict(made.manifest.quality)
        print_json({"bundle": str(bundle), "source": found, "components": components, "quality": quality})
    else:
        for line in quality_lines(made.manifest):
            click.echo(line, err=True)
        click.echo(bundle)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("source")
@source_options
@click.option("--stage", "stages", multiple=True, help="Verify this stage only; repeat for several.")
@json_option
def verify(bundle: Path, source: str, stages: tuple[str, ...], as_json: bool, **parts: Any) -> None:
    """Compare BUNDLE with SOURCE (and the parts that it was exported with) under torch, stage by stage."""
    from telecine_export.verify import as_text, verify_bundle

    report = verify_bundle(bundle, _open(source, **parts), stages=stages or None)
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        click.echo(as_text(report))
    if not report.passed:
        sys.exit(1)


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Hash the weights (of a plan: the tensors) too.")
@json_option
def inspect(path: Path, check: bool, as_json: bool) -> None:
    """Print what the bundle or plan PATH holds: graphs, axes, precisions, parameters, bytes, presets; steps, memory."""
    from telecine.bundle import Bundle
    from telecine.inspection import as_text
    from telecine.plan.inspection import describe, is_plan, read_plan

    if is_plan(path):
        plan = read_plan(path, check=check)
        click.echo("\n".join([str(path), *describe(plan)])) if not as_json else print_json(plan)
        return
    bundle = Bundle.open(path)
    if check:
        bundle.check_weights()
    if as_json:
        print_json(dataclasses.asdict(bundle.manifest))
    else:
        click.echo(as_text(bundle, weights_checked=check))


@main.command()
@click.option("--for", "purpose", default="runtime", show_default=True, help="runtime, export or build.")
@click.option("--path", type=click.Path(path_type=Path), help="Where bundles or clips will be written.")
@json_option
def doctor(purpose: str, path: Path | None, as_json: bool) -> None:
    """Check this machine: packages, providers, driver, GPU, codecs, disk; each fault with its fix."""
    from telecine.doctor import as_text, examine

    checks = examine(purpose, path=path)
    if as_json:
        print_json([dataclasses.asdict(check) for check in checks])
    else:
        click.echo(as_text(checks))
    if any(check.status == "fail" for check in checks):
        sys.exit(1)
