"""telecine upscale: every parameter of `Pipeline.upscale`, spelled with dashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from telecine.cli.group import json_option, main
from telecine.cli.outputs import (
    RUNTIME_PARAMETERS,
    check_latents_output,
    check_video_output,
    load,
    one_or_many,
    output_options,
    read_arrays,
    report,
    runtime_options,
    tiling_options,
)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("input", type=click.Path(path_type=Path))
@click.option("--height", type=int, help="Resize INPUT to this first, on the grid of 32. Default: its own.")
@click.option("--width", type=int, help="Resize INPUT to this first, on the grid of 32. Default: its own.")
@click.option("--frame-rate", type=float, help="Of the result. Default: what keeps the duration of INPUT.")
@click.option("--adain-factor", type=float, help="Match the statistics of the small latents: 0 to 1, at most 10.")
@click.option("--tone-map-compression-ratio", type=float, help="Compress extreme latents: 0 to 1.")
@output_options
@tiling_options
@runtime_options
@json_option
def upscale(bundle: Path, input: Path, output: Path, quality: int | None, as_json: bool, **parameters: Any) -> None:
    """Upscale INPUT, a video or the `latents` of a .safetensors file, with BUNDLE's latent upsampler."""
    runtime = {name: parameters.pop(name) for name in RUNTIME_PARAMETERS}
    for name in ("seed", "decode_timestep", "decode_noise_scale"):
        parameters[name] = one_or_many(parameters[name])
    is_video = input.suffix != ".safetensors"
    given: dict[str, Any] = {"video": input} if is_video else read_arrays(input, ("latents",))
    videos = 1 if is_video or not given["latents"].ndim else len(given["latents"])
    if parameters["output_type"] == "latent":
        check_latents_output(output, parameters["frame_rate"], quality)
    else:
        check_video_output(output, videos, parameters["frame_rate"], quality)
    with load(bundle, **runtime) as pipe:
        make = pipe.upscale if parameters["output_type"] == "latent" else pipe.stream_upscaled
        report(make(**given, **parameters), output, None, quality, as_json)
