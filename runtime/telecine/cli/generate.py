"""telecine generate: every parameter of `Pipeline.generate`, spelled with dashes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from telecine.cli.group import json_option, main, print_json
from telecine.errors import RequestError


def _numbers(_: click.Context, __: click.Parameter, text: str | None) -> list[float] | None:
    """`1000,900,500` → numbers."""
    if text is None:
        return None
    try:
        return [float(item) for item in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 1000,900,500") from error


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help=".mp4, .webm, .gif, a PNG sequence as FOLDER/%05d.png; .safetensors for latents.",
)
@click.option("--prompt", multiple=True, help="Text; repeat for a batch.")
@click.option("--negative-prompt", multiple=True, help="One for all prompts, or one each.")
@click.option("--height", type=int, help="Pixels, on the grid of 32.")
@click.option("--width", type=int, help="Pixels, on the grid of 32.")
@click.option("--num-frames", type=int, help="8k+1; others are rounded down.")
@click.option("--frame-rate", type=float, help="Frames a second that the model is told.")
@click.option("--num-inference-steps", type=int)
@click.option("--timesteps", callback=_numbers, help="Custom descending timesteps: 1000,900,...")
@click.option("--guidance-scale", type=float)
@click.option("--guidance-rescale", type=float)
@click.option("--num-videos-per-prompt", type=int)
@click.option("--seed", type=int, multiple=True, help="One for all videos, or one a video. Default: random.")
@click.option("--latents", type=click.Path(path_type=Path), help="Initial packed latents: `latents` in a safetensors.")
@click.option(
    "--prompt-embeds",
    type=click.Path(path_type=Path),
    help="Instead of text: prompt_embeds, prompt_attention_mask and negative_... in a safetensors.",
)
@click.option("--decode-timestep", callback=_numbers, help="Of the decoder; one, or one a video: 0.05,0.03")
@click.option("--decode-noise-scale", callback=_numbers, help="Default: the decode timestep.")
@click.option("--max-sequence-length", type=int, help="Text length in tokens.")
@click.option("--tiling", help="auto, off, seamless or diffusers: how the decoder is run in parts. Default: auto.")
@click.option("--tile-size", type=int, help="Pixels of a tile's side, context included.")
@click.option("--tile-stride", type=int, help="Pixels from tile to tile.")
@click.option("--tile-frames", type=int, help="Frames of a tile, context included.")
@click.option("--tile-frame-stride", type=int, help="Frames from tile to tile.")
@click.option("--memory-limit", help="What decoding may take beside the networks, such as 8GiB: chooses tiles.")
@click.option("--output-type", type=click.Choice(["uint8", "latent"]), default="uint8", show_default=True)
@click.option("--preset", help="A preset of the bundle, such as recommended.")
@click.option("--pipeline", help="Host math of another diffusers pipeline class than the source's.")
@click.option("--file-frame-rate", type=float, help="Of the file. Default: the request's frame rate.")
@click.option("--quality", type=int, help="CRF of mp4 and webm: lower is better.")
@click.option("--backend", default="auto", show_default=True, help="auto or onnxruntime.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--provider", "providers", multiple=True, help="ONNX Runtime execution provider, in order of preference.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of one operator.")
@click.option("--memory-arena/--no-memory-arena", default=True, show_default=True, help="Keep freed CPU memory.")
@click.option("--memory-pattern/--no-memory-pattern", default=True, show_default=True, help="Plan memory by shape.")
@json_option
def generate(
    bundle: Path, output: Path, providers: Sequence[str], threads: int | None, memory_arena: bool, memory_pattern: bool,
    backend: str, device: str, file_frame_rate: float | None, quality: int | None, as_json: bool, **parameters: Any,
) -> None:  # fmt: skip
    """Make a video with BUNDLE."""
    import telecine

    latent = parameters["output_type"] == "latent"
    for name in ("prompt", "negative_prompt", "seed", "decode_timestep", "decode_noise_scale"):
        parameters[name] = _one_or_many(parameters[name])
    parameters |= _arrays(parameters.pop("latents"), ("latents",))
    parameters |= _arrays(parameters.pop("prompt_embeds"), EMBEDS)
    if latent:
        _check_latents_output(output, file_frame_rate, quality)
    else:
        frame_rate = parameters["frame_rate"] if file_frame_rate is None else file_frame_rate
        _check_video_output(output, _videos(parameters), frame_rate, quality)
    options = telecine.OnnxRuntimeOptions(
        providers=tuple(providers) or None, threads=threads, memory_arena=memory_arena, memory_pattern=memory_pattern
    )
    with telecine.load(bundle, backend=backend, device=device, options=options) as pipe, _progress() as callback:
        made: telecine.Result | telecine.FrameStream
        if latent:
            made = pipe.generate(**parameters, callback=callback)
            paths = [_save_latents(made.latents, output)]
        else:
            made = pipe.stream(**parameters, callback=callback)
            paths = made.save(output, frame_rate=file_frame_rate, quality=quality)
    if as_json:
        print_json({"files": [str(path) for path in paths], "seeds": made.seeds, "seconds": dict(made.timings)})
    else:
        for path in paths:
            click.echo(path)
        click.echo(
            f"seed {', '.join(map(str, made.seeds))}; "
            + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in made.timings.items()),
            err=True,
        )


EMBEDS = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")


def _one_or_many(values: Sequence[Any] | None) -> Any:
    """None for none, the value for one, a list for several."""
    if not values:
        return None
    return values[0] if len(values) == 1 else list(values)


def _videos(parameters: dict[str, Any]) -> int:
    """How many files there will be, as far as the command line tells."""
    prompt, embeds = parameters["prompt"], parameters.get("prompt_embeds")
    prompts = len(embeds) if embeds is not None and embeds.ndim else len(prompt) if isinstance(prompt, list) else 1
    return prompts * (parameters["num_videos_per_prompt"] or 1)


def _check_video_output(output: Path, videos: int, frame_rate: float | None, quality: int | None) -> None:
    """Refuse files that could not be written before the minutes that make their content."""
    from telecine.results import numbered
    from telecine.video import check_output_path
    from telecine.video.ffmpeg import check_encoder
    from telecine.video.formats import format_of

    for path in numbered(output, min(max(videos, 1), 100)):  # nobody waits for more checks than these
        check_output_path(path, frame_rate=frame_rate, quality=quality)
    check_encoder(format_of(output))


def _check_latents_output(output: Path, frame_rate: float | None, quality: int | None) -> None:
    """As `_check_video_output`, for --output-type latent."""
    from telecine.atomic import check_writable

    if output.suffix != ".safetensors" or frame_rate is not None or quality is not None:
        raise RequestError(
            f"latents into {output}" + (" with a frame rate or quality" if output.suffix == ".safetensors" else ""),
            expected="a .safetensors file, and no --file-frame-rate or --quality",
            fix="Write -o latents.safetensors, or leave --output-type out for a video.",
        )
    else:
        check_writable(output)


def _arrays(path: Path | None, names: tuple[str, ...]) -> dict[str, Any]:
    """The arrays of a safetensors file, by the parameters' names."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if path is None:
        return {}
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError, TypeError) as error:  # TypeError: bfloat16, which NumPy lacks
        raise RequestError(
            f"{path} cannot be read: {error}",
            expected="a safetensors file of float32 or float16 arrays",
            fix="Check the path, or save the arrays as float32.",
        ) from error
    if not arrays or not set(arrays) <= set(names):
        raise RequestError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}",
            expected=f"some of {', '.join(names)}",
            fix="Name the arrays as generate's parameters.",
        )
    return dict(arrays)


def _save_latents(latents: Any, output: Path) -> Path:
    from safetensors.numpy import save

    from telecine.atomic import atomic_file

    # Not save_file: it renames a file of its own over the one that atomic_file has locked.
    content = save({"latents": latents})
    try:
        with atomic_file(output) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise RequestError(
            f"{output} could not be written ({error.strerror or error})",
            expected="a disk with room",
            fix="Free space, or choose another path.",
        ) from error
    return output


@contextmanager
def _progress() -> Iterator[Callable[..., None]]:
    """A callback that draws the denoising steps as a bar, where stderr is a terminal."""
    with ExitStack() as stack:
        bar: Any = None

        def step(index: int, steps: int, sigma: float, latents: Any) -> None:
            nonlocal bar
            if not sys.stderr.isatty():
                return  # click would still print the label
            if bar is None:
                bar = stack.enter_context(click.progressbar(length=steps, label="denoising", file=sys.stderr))
            bar.update(1)

        yield step
