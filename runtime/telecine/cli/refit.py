"""telecine refit. telecine_engines is imported inside the command: boxes may not have it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from telecine.cli.group import json_option, main, print_json


def _by_component(_: click.Context, __: click.Parameter, items: Sequence[str]) -> dict[str, Path]:
    """`transformer=FILE` → paths by component."""
    paths: dict[str, Path] = {}
    for item in items:
        component, found, path = item.partition("=")
        if not found or not path:
            raise click.BadParameter(f"{item!r} is not like transformer=FILE")
        paths[component] = Path(path)
    return paths


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--lora", "loras", multiple=True, help="FILE or FILE=SCALE; repeat for several, which add up.")
@click.option(
    "--weights",
    multiple=True,
    callback=_by_component,
    metavar="COMPONENT=FILE",
    help="A fine-tune of the same shape: safetensors file or folder; repeat for several components.",
)
@click.option(
    "--engines",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Also refit the plans in this folder (BUNDLE/engines), built with --refit, into OUT/engines. Needs their GPU.",
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle that exists, once the new one is whole.")
@json_option
def refit(
    bundle: Path, out: Path, loras: Sequence[str], weights: dict[str, Path], engines: Path | None, overwrite: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write OUT: BUNDLE with LoRA files or other weights in it, without torch, another export or another build."""
    from telecine.bundle import Bundle
    from telecine.lora import resolve, split_scale
    from telecine.refit import refitted_bundle

    opened = Bundle.open(bundle)
    chosen = resolve([split_scale(lora) for lora in loras])
    plans: dict[str, str] = {}
    with refitted_bundle(opened, out, loras=chosen, weights=weights, overwrite=overwrite) as made:
        refitted = {name: part.refitted for name, part in made.manifest.components.items() if part.refitted}
        if engines is not None:
            from telecine_engines.refit import refit_engines

            plans = refit_engines(opened, made, engines)
    if as_json:
        print_json({"bundle": str(out), "refitted": refitted, "plans": plans})
    else:
        for plan, done in plans.items():
            click.echo(f"{plan}: {done}", err=True)
        click.echo(out)
