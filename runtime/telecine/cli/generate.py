"""telecine generate: every parameter of `Pipeline.generate`, spelled with dashes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from telecine.cli.conditions import conditions
from telecine.cli.group import json_option, main
from telecine.cli.outputs import (
    RUNTIME_PARAMETERS,
    check_latents_output,
    check_video_output,
    load,
    numbers,
    one_or_many,
    output_options,
    read_arrays,
    report,
    runtime_options,
    settings,
    tiling_options,
)

ONE_OR_MANY = (
    "prompt", "negative_prompt", "seed", "guidance_scale", "guidance_rescale", "stg_scale", "modality_scale",
    "audio_guidance_scale", "audio_guidance_rescale", "audio_stg_scale", "audio_modality_scale", "decode_timestep",
    "decode_noise_scale",
)  # fmt: skip
EMBEDS = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")


def _blocks(_: click.Context, __: click.Parameter, text: str | None) -> list[int] | list[list[int]] | None:
    """`11,25` → indexes; `11,25;;28` → a list of them a step."""
    if text is None:
        return None
    try:
        steps = [[int(item) for item in step.split(",")] if step.strip() else [] for step in text.split(";")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of blocks such as 11,25 or 11,25;28") from error
    return steps if ";" in text else steps[0]


def _block_list(context: click.Context, parameter: click.Parameter, text: str | None) -> list[int] | None:
    """`11,25` → indexes."""
    indexes = numbers(context, parameter, text)
    if indexes is not None and not all(index.is_integer() for index in indexes):
        raise click.BadParameter(f"{text!r} is not a list of blocks such as 28 or 11,25")
    return None if indexes is None else [int(index) for index in indexes]


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompt", multiple=True, help="Text; repeat for a batch.")
@click.option("--negative-prompt", multiple=True, help="One for all prompts, or one each.")
@click.option("--height", type=int, help="Pixels, on the model's grid; any in two stages.")
@click.option("--width", type=int, help="Pixels, on the model's grid; any in two stages.")
@click.option("--num-frames", type=int, help="On the model's grid (LTX-Video 8k+1, CogVideoX 8k+1 or 8k).")
@click.option("--frame-rate", type=float, help="Frames a second that the model is told.")
@click.option("--motion-speed", type=float, help="Of LTX-2: below 1 is slow motion.")
@click.option("--num-inference-steps", type=int)
@click.option("--timesteps", callback=numbers, help="Custom descending timesteps: 1000,900,...")
@click.option("--sigmas", callback=numbers, help="Of LTX-2: where its steps begin: 1,0.9,...")
@click.option("--guidance-scale", callback=numbers, help="One, or one a step: 1,6,8")
@click.option("--guidance-rescale", callback=numbers, help="0 to 1; one, or one a step.")
@click.option("--guidance-sigmas", callback=numbers, help="Lists hold a value for each of these: 1,0.98,0.6")
@click.option("--cfg-star/--no-cfg-star", default=None, help="Scale the negative prediction to the positive one.")
@click.option("--stg-scale", callback=numbers, help="Of spatio-temporal guidance; one, or one a step.")
@click.option("--stg-mode", help="attention_values (the default), attention_skip or transformer_block.")
@click.option("--stg-blocks", callback=_blocks, help="Blocks to perturb: 19; a list a step: 11,25;28")
@click.option(
    "--spatio-temporal-guidance-blocks", callback=_block_list, help="Of LTX-2: blocks to perturb, such as 28."
)
@click.option("--modality-scale", callback=numbers, help="Of LTX-2: away from video and sound by themselves.")
@click.option("--audio-guidance-scale", callback=numbers, help="Of LTX-2's sound; 0 is the video's.")
@click.option("--audio-guidance-rescale", callback=numbers, help="Of LTX-2's sound; 0 is the video's.")
@click.option("--audio-stg-scale", callback=numbers, help="Of LTX-2's sound; 0 is the video's.")
@click.option("--audio-modality-scale", callback=numbers, help="Of LTX-2's sound; 0 is the video's.")
@click.option(
    "--use-cross-timestep/--no-use-cross-timestep",
    default=None,
    help="Of LTX-2: on (the default) for 2.3, off for 2.0.",
)
@click.option("--num-videos-per-prompt", type=int)
@click.option("--image", "images", multiple=True, help="FILE[@FRAME[:STRENGTH]]; FILE alone is the first frame.")
@click.option("--image-crf", type=int, help="Of LTX-2: how --image is compressed first; 0 is not at all.")
@click.option("--video", "videos", multiple=True, help="FILE[@FRAME[:STRENGTH]]: a video from that frame on.")
@click.option("--strength", type=float, help="Of CogVideoX: how much of --video is made anew, by the last steps.")
@click.option("--use-dynamic-cfg/--no-use-dynamic-cfg", default=None, help="Of CogVideoX: guidance that grows.")
@click.option("--image-cond-noise-scale", type=float, help="Noise on held frames, against a frozen look.")
@click.option("--denoise-strength", type=float, help="Below 1: change --latents, by the last part of the steps.")
@click.option(
    "--latents",
    type=click.Path(path_type=Path),
    help="Initial latents, as --output-type latent writes them: `latents` (and `audio_latents`) in a safetensors.",
)
@click.option("--noise-scale", type=float, help="Of LTX-2: the share of noise that --latents begin with.")
@click.option(
    "--prompt-embeds",
    type=click.Path(path_type=Path),
    help="Instead of text: prompt_embeds, prompt_attention_mask and negative_... in a safetensors.",
)
@click.option("--max-sequence-length", type=int, help="Text length in tokens.")
@click.option(
    "--second-stage",
    multiple=True,
    callback=settings,
    metavar="NAME=VALUE",
    help="Make the video in two stages (as a two-stage preset does), with denoise_strength=0.4, sigmas=0.9,0.7, ...",
)
@click.option("--lora", "loras", multiple=True, help="FILE or FILE=SCALE; repeat for several, which add up.")
@click.option("--preset", help="A preset of the bundle, such as recommended.")
@click.option("--pipeline", help="Host math of another diffusers pipeline class than the source's.")
@click.option("--file-frame-rate", type=float, help="Of the file. Default: the request's frame rate.")
@output_options
@tiling_options
@runtime_options
@json_option
def generate(
    bundle: Path, output: Path, file_frame_rate: float | None, quality: int | None, as_json: bool,
    images: Sequence[str], videos: Sequence[str], loras: Sequence[str], **parameters: Any,
) -> None:  # fmt: skip
    """Make a video with BUNDLE."""
    from telecine.lora import split_scale

    runtime = {name: parameters.pop(name) for name in RUNTIME_PARAMETERS}
    latent = parameters["output_type"] == "latent"
    parameters = request_parameters(parameters, images, videos)
    if latent:
        check_latents_output(output, file_frame_rate, quality)
    else:
        frame_rate = parameters["frame_rate"] if file_frame_rate is None else file_frame_rate
        check_video_output(output, _videos(parameters), frame_rate, quality)
    with load(bundle, **runtime) as pipe, _progress() as callback:
        if loras:
            pipe.load_lora([split_scale(lora) for lora in loras])
        make = pipe.generate if latent else pipe.stream
        report(make(**parameters, callback=callback), output, file_frame_rate, quality, as_json)


def request_parameters(options: dict[str, Any], images: Sequence[str], videos: Sequence[str]) -> dict[str, Any]:
    """Parameters of `Pipeline.generate` from the options by their names."""
    parameters = options | {name: one_or_many(options[name]) for name in ONE_OR_MANY}
    parameters |= read_arrays(parameters.pop("latents"), ("latents", "audio_latents"))
    parameters |= read_arrays(parameters.pop("prompt_embeds"), EMBEDS)
    return parameters | conditions(images, videos)


def _videos(parameters: dict[str, Any]) -> int:
    """How many files there will be, as far as the command line tells."""
    prompt, embeds = parameters["prompt"], parameters.get("prompt_embeds")
    prompts = len(embeds) if embeds is not None and embeds.ndim else len(prompt) if isinstance(prompt, list) else 1
    return prompts * (parameters["num_videos_per_prompt"] or 1)


@contextmanager
def _progress() -> Iterator[Callable[..., None]]:
    """A callback that draws the denoising steps as a bar, where stderr is a terminal."""
    with ExitStack() as stack:
        bar: Any = None

        def step(index: int, steps: int, sigma: float, latents: Any) -> None:
            nonlocal bar
            if not sys.stderr.isatty():
                return  # click would still print the label
            if index == 0:  # of each stage, where there are several
                stack.close()
                bar = stack.enter_context(click.progressbar(length=steps, label="denoising", file=sys.stderr))
            bar.update(1)

        yield step
