"""telecine build and telecine pack. telecine_engines is imported inside the commands: boxes may not have it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from telecine.cli.group import json_option, main, print_json


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="local (the default: this machine's GPU), trt-smXX, rtx-smXX; rtx-sm89+sm120 is one plan for both. Repeat "
    "for a plan each.",
)
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    metavar="WIDTHxHEIGHTxFRAMES[@bN]",
    help="A size, or a range such as 512x512x9..1280x704x257@b1..2; repeat for several. Default: all sizes up to the "
    "preset recommended.",
)
@click.option("--component", "components", multiple=True, help="Build this component only; repeat for several.")
@click.option("--engines", type=click.Path(path_type=Path), help="Where plans go. Default: BUNDLE/engines.")
@click.option("--vae-tile", help="The most that the VAE gets at once. Default: 512x512x121; of CogVideoX the video.")
@click.option("--keyframes", type=int, help="Latent frames that conditions at later frames may add (LTX-Video: 4).")
@click.option("--builder-optimization-level", type=int, help="0 (quick) to 5. Not for RTX.")
@click.option("--workspace", type=int, metavar="MIB", help="GPU memory of a kernel beside activations.")
@click.option("--max-aux-streams", type=int, help="Streams of one execution beside its own.")
@click.option(
    "--timing-cache", type=click.Path(path_type=Path), help="Measured kernels, read and written. Not for RTX."
)
@click.option("--version-compatible", is_flag=True, help="Plans open in later versions, by tensorrt-lean.")
@click.option("--hardware-compatibility-level", default="NONE", show_default=True, help="AMPERE_PLUS, ... Not for RTX.")
@click.option("--weight-streaming", is_flag=True, help="Weights may stay in host memory.")
@click.option("--refit", is_flag=True, help="Weights may be replaced. For RTX it needs a GPU.")
@click.option("--strip-plan", is_flag=True, help="Leave weights out: refit puts them in. For RTX it needs a GPU.")
@click.option("--tf32", is_flag=True, help="Round products of fp32 components to TF32: faster, less exact.")
@click.option("--dry-run", is_flag=True, help="Print what would be built, and build nothing.")
@json_option
def build(
    bundle: Path, targets: tuple[str, ...], workloads: tuple[str, ...], components: tuple[str, ...],
    engines: Path | None, vae_tile: str | None, keyframes: int | None, dry_run: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Build BUNDLE's TensorRT engines: what is there already stays."""
    from telecine.bundle import Bundle
    from telecine_engines.build import BuildRequest, build_engines, plan_engines
    from telecine_engines.options import BuildOptions
    from telecine_engines.plan_report import purpose_text

    request = BuildRequest(
        bundle=Bundle.open(bundle),
        targets=targets or ("local",),
        workloads=workloads,
        components=components,
        options=BuildOptions(**options),
        engines=engines,
        vae_tile=vae_tile,
        keyframes=keyframes,
    )
    if dry_run:
        planned = plan_engines(request)
        if as_json:
            print_json(planned.as_json())
        else:
            click.echo(_planned_text(request, planned))
        return
    report = build_engines(request, _progress(request))
    if as_json:
        print_json(
            [
                {"plan": str(path), "built": path in report.built, "size": each.plan_size, "target": each.target,
                 "component": each.component, "role": each.role, "seconds": each.build_seconds,
                 "peak_memory": each.build_peak_bytes, "precisions": each.precisions, "layers": each.layers}
                for path, each in report.sidecars.items()
            ]
        )  # fmt: skip
        return
    for path in report.sidecars:
        click.echo(path)
    click.echo(
        f"{len(report.built)} plans built, {len(report.sidecars) - len(report.built)} were there, "
        f"in {report.seconds:.1f} s",
        err=True,
    )
    click.echo("\n".join(purpose_text(report)), err=True)


def _planned_text(request: Any, planned: Any) -> str:
    from telecine_engines.plan_report import as_text

    parts = request.bundle.manifest.components
    specs = {(name, role): graph.inputs for name, part in parts.items() for role, graph in part.graphs.items()}
    return as_text(planned, specs)


def _progress(request: Any) -> Any:
    """Lines on stderr; on a terminal TensorRT's phases too, in one line that is written over."""
    from telecine_engines.build import Progress
    from telecine_engines.plan_report import built_text

    def phase(name: str, done: int, steps: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r\033[K  {name} {done}/{steps}", err=True, nl=False)

    def finished(_: object, sidecar: Any) -> None:
        if sys.stderr.isatty():
            click.echo("\r\033[K", err=True, nl=False)
        click.echo(built_text(sidecar), err=True)

    return Progress(
        planned=lambda planned: click.echo(_planned_text(request, planned), err=True),
        started=lambda plan: click.echo(f"building {plan.component}.{plan.role} for {plan.target.name}", err=True),
        phase=phase,
        finished=finished,
    )


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--target", "targets", multiple=True, required=True, help="Whose plans to take; repeat for several.")
@click.option("--engines", type=click.Path(path_type=Path), help="Where the plans are. Default: BUNDLE/engines.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that exists, once the new one is whole.")
def pack(bundle: Path, out: Path, targets: tuple[str, ...], engines: Path | None, overwrite: bool) -> None:
    """Write OUT: BUNDLE with the engines of a target in place of its weights, for the box that runs them."""
    from telecine.bundle import Bundle
    from telecine_engines.pack import pack as pack_bundle

    pack_bundle(Bundle.open(bundle), out, targets=targets, engines=engines, overwrite=overwrite)
    click.echo(out)
