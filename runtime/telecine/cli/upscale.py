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
    numbers,
    one_or_many,
    read_arrays,
    report,
    runtime_options,
    tiling_options,
)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("input", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help=".mp4, .webm, .gif, a PNG sequence as FOLDER/%05d.png; .safetensors for latents.",
)
@click.option("--height", type=int, help="Resize INPUT to this first, on the grid of 32. Default: its own.")
@click.option("--width", type=int, help="Resize INPUT to this first, on the grid of 32. Default: its own.")
@click.option("--frame-rate", type=float, help="Of the result. Default: what keeps the duration of INPUT.")
@click.option("--adain-factor", type=float, help="Match the statistics of the small latents: 0 to 1, at most 10.")
@click.option("--tone-map-compression-ratio", type=float, help="Compress extreme latents: 0 to 1.")
@click.option("--decode-timestep", callback=numbers, help="Of the decoder; one, or one a video: 0.05,0.03")
@click.option("--decode-noise-scale", callback=numbers, help="Default: the decode timestep.")
@click.option("--seed", type=int, multiple=True, help="One for all videos, or one a video. Default: random.")
@click.option("--output-type", type=click.Choice(["uint8", "latent"]), default="uint8", show_default=True)
@click.option("--quality", type=int, help="CRF of mp4 and webm: lower is better.")
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
