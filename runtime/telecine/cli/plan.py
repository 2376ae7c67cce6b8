"""telecine plan: a request as a program for hosts without Python; its parameters are spelled as generate's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from telecine.cli.generate import generate, request_parameters
from telecine.cli.group import json_option, main, print_json
from telecine.cli.outputs import RUNTIME_PARAMETERS
from telecine.errors import RequestError

# What the workload says, what becomes of a file that is not written, and what a plan cannot hold.
ABSENT = {
    "bundle", "height", "width", "num_frames", "num_inference_steps", "num_videos_per_prompt", "output",
    "file_frame_rate", "quality", "as_json", "second_stage", "loras", *RUNTIME_PARAMETERS,
}  # fmt: skip


@main.command(params=[each for each in generate.params if each.name not in ABSENT])
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--workload", required=True, metavar="WIDTHxHEIGHTxFRAMES[@bN]", help="The size, and N videos at once.")
@click.option("--steps", "num_inference_steps", type=int, help="Of the denoising.")
@click.option("--target", help="Tile the VAE to what the bundle's engines for it take, such as rtx-sm89.")
@click.option("--overwrite", is_flag=True, help="Replace a plan that exists, once the new one is whole.")
@json_option
def plan(
    bundle: Path, out: Path, workload: str, images: Sequence[str], videos: Sequence[str], as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Write to the folder OUT all that a host needs to make one video with BUNDLE, without Python.

    Without --prompt (and --prompt-embeds) the host fills in the tokens of a prompt. The format is told in
    runtime/embed/README.md.
    """
    from telecine.bundle import Bundle
    from telecine.plan import make_plan
    from telecine.plan.inspection import describe

    opened = Bundle.open(bundle)
    made = make_plan(opened, out, **_size(workload, opened), **request_parameters(options, images, videos))
    if as_json:
        print_json({"plan": str(out), **{name: made[name] for name in ("seeds", "inputs", "output", "memory")}})
    else:
        click.echo(out)
        click.echo("\n".join(describe(made)), err=True)


def _size(workload: str, bundle: Any) -> dict[str, Any]:
    """Parameters of `make_plan` for one size."""
    from telecine_engines.workloads import parse_workloads

    (parsed,) = parse_workloads([workload], bundle)
    if parsed.low != parsed.high or parsed.videos[0] != parsed.videos[1]:
        raise RequestError(
            f"workload {workload}, a range",
            expected="one size: every buffer of a plan has its bytes",
            fix=f"Use {parsed.high.width}x{parsed.high.height}x{parsed.high.num_frames}@b{parsed.videos[1]}.",
        )
    shape = parsed.high
    return {
        "width": shape.width,
        "height": shape.height,
        "num_frames": shape.num_frames,
        "videos": parsed.videos[1],
    }
