"""What the commands that make videos share: options of the runtime, parsing, checked outputs, what they print."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from telecine.cli.group import print_json
from telecine.errors import RequestError

if TYPE_CHECKING:
    from telecine.peak_memory import MemoryUse
    from telecine.pipeline import Pipeline
    from telecine.results import FrameStream, Result

F = TypeVar("F", bound=Callable[..., Any])

RUNTIME_PARAMETERS = (
    "backend", "device", "engines", "cuda_graphs", "providers", "threads", "memory_arena", "memory_pattern",
)  # fmt: skip
LISTS = ("timesteps", "sigmas", "spatio_temporal_guidance_blocks")  # settings of a second stage, whatever their length
CUDA_GRAPHS: Mapping[str, Any] = {"auto": "auto", "on": True, "off": False}


def runtime_options(command: F) -> F:
    """Add the options of `load`, named as in RUNTIME_PARAMETERS."""
    on: dict[str, Any] = {"default": True, "show_default": True}
    for option in (
        click.option("--memory-pattern/--no-memory-pattern", **on, help="Plan memory by shape."),
        click.option("--memory-arena/--no-memory-arena", **on, help="Keep freed CPU memory."),
        click.option("--threads", type=click.IntRange(min=1), help="Threads of one operator."),
        click.option(
            "--provider", "providers", multiple=True, help="ONNX Runtime execution provider, in order of preference."
        ),
        click.option(
            "--cuda-graphs",
            type=click.Choice(list(CUDA_GRAPHS)),
            default="auto",
            show_default=True,
            help="Give a GPU each network's launches as a whole.",
        ),
        click.option(
            "--engines",
            type=click.Path(path_type=Path),
            help="Folder of TensorRT engines. Default: the bundle's own, BUNDLE/engines.",
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
        click.option("--backend", default="auto", show_default=True, help="auto, onnxruntime or tensorrt."),
    ):
        command = option(command)
    return command


def output_options(command: F) -> F:
    """Add the options of decoding and of the file that `generate` and `upscale` share."""
    for option in (
        click.option("--quality", type=int, help="CRF of mp4 and webm: lower is better."),
        click.option("--output-type", type=click.Choice(["uint8", "latent"]), default="uint8", show_default=True),
        click.option("--seed", type=int, multiple=True, help="One for all videos, or one a video. Default: random."),
        click.option("--decode-noise-scale", callback=numbers, help="Default: the decode timestep."),
        click.option("--decode-timestep", callback=numbers, help="Of the decoder; one, or one a video: 0.05,0.03"),
        click.option(
            "-o",
            "--output",
            type=click.Path(path_type=Path),
            required=True,
            help=".mp4, .webm, .gif, a PNG sequence as FOLDER/%05d.png; .safetensors for latents.",
        ),
    ):
        command = option(command)
    return command


def tiling_options(command: F) -> F:
    """Add the options of tiles and memory that `generate` and `upscale` share."""
    for option in (
        click.option(
            "--memory-limit", help="What the run may take, such as 8GiB: drops networks between stages, chooses tiles."
        ),
        click.option("--tile-frame-stride", type=int, help="Frames from tile to tile."),
        click.option("--tile-frames", type=int, help="Frames of a tile, context included."),
        click.option("--tile-stride", type=int, help="Pixels from tile to tile."),
        click.option("--tile-size", type=int, help="Pixels of a tile's side, context included."),
        click.option("--tiling", help="auto, off, seamless or diffusers: how the VAE is run in parts. Default: auto."),
    ):
        command = option(command)
    return command


def load(
    bundle: Path, *, backend: str, device: str, engines: Path | None, cuda_graphs: str, providers: Sequence[str],
    threads: int | None, memory_arena: bool, memory_pattern: bool,
) -> Pipeline:  # fmt: skip
    import telecine

    options = telecine.OnnxRuntimeOptions(
        providers=tuple(providers) or None, threads=threads, memory_arena=memory_arena, memory_pattern=memory_pattern
    )
    logging.getLogger("telecine.models").setLevel(logging.INFO)  # the predicted peak, before the run
    given = None if options == telecine.OnnxRuntimeOptions() else options
    return telecine.load(
        bundle, backend=backend, device=device, engines=engines, options=given, cuda_graphs=CUDA_GRAPHS[cuda_graphs]
    )


def numbers(_: click.Context, __: click.Parameter, text: str | None) -> list[float] | None:
    """`1000,900,500` → numbers."""
    if text is None:
        return None
    try:
        return [float(item) for item in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 1000,900,500") from error


def settings(context: click.Context, parameter: click.Parameter, items: Sequence[str]) -> dict[str, Any] | None:
    """`denoise_strength=0.4`, `timesteps=909,725` → values by name."""
    values: dict[str, Any] = {}
    for item in items:
        name, _, text = item.partition("=")
        try:
            parsed = [int(part) if part.isdecimal() else float(part) for part in text.split(",")]
        except ValueError as error:
            raise click.BadParameter(f"{item!r} is not like denoise_strength=0.4 or timesteps=909,725") from error
        name = name.replace("-", "_")
        values[name] = parsed if name in LISTS or len(parsed) > 1 else parsed[0]
    return values or None


def one_or_many(values: Sequence[Any] | None) -> Any:
    """None for none, the value for one, a list for several."""
    if not values:
        return None
    return values[0] if len(values) == 1 else list(values)


def check_video_output(output: Path, videos: int, frame_rate: float | None, quality: int | None) -> None:
    """Refuse files that could not be written before the minutes that make their content."""
    from telecine.results import numbered
    from telecine.video import check_output_path
    from telecine.video.ffmpeg import check_encoder
    from telecine.video.formats import format_of

    for path in numbered(output, min(max(videos, 1), 100)):  # nobody waits for more checks than these
        check_output_path(path, frame_rate=frame_rate, quality=quality)
    check_encoder(format_of(output).codec)


def check_latents_output(output: Path, frame_rate: float | None, quality: int | None) -> None:
    """As `check_video_output`, for --output-type latent."""
    from telecine.atomic import check_writable

    if output.suffix != ".safetensors" or frame_rate is not None or quality is not None:
        raise RequestError(
            f"latents into {output}" + (" with a frame rate or quality" if output.suffix == ".safetensors" else ""),
            expected="a .safetensors file, and neither a frame rate of the file nor --quality",
            fix="Write -o latents.safetensors, or leave --output-type out for a video.",
        )
    else:
        check_writable(output)


def read_arrays(path: Path | None, names: tuple[str, ...]) -> dict[str, Any]:
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


def save_latents(made: Result, output: Path) -> Path:
    """Write `latents`, and `audio_latents` where a model makes them."""
    from safetensors.numpy import save

    from telecine.atomic import atomic_file

    # Not save_file: it renames a file of its own over the one that atomic_file has locked.
    arrays = {"latents": made.latents, "audio_latents": made.audio_latents}
    content = save({name: each for name, each in arrays.items() if each is not None})
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


def report(
    made: Result | FrameStream, output: Path, frame_rate: float | None, quality: int | None, as_json: bool
) -> None:
    """Save what was made (latents, or frames while they are decoded), and say where it is."""
    from telecine.results import FrameStream

    if isinstance(made, FrameStream):
        paths = made.save(output, frame_rate=frame_rate, quality=quality)
    else:
        paths = [save_latents(made, output)]
    if as_json:
        print_json(
            {
                "files": [str(path) for path in paths],
                "seeds": made.seeds,
                "seconds": dict(made.timings),
                "memory": dataclasses.asdict(made.memory),
            }
        )
    else:
        for path in paths:
            click.echo(path)
        click.echo(
            f"seed {', '.join(map(str, made.seeds))}; "
            + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in made.timings.items())
            + _memory(made.memory),
            err=True,
        )


def _memory(memory: MemoryUse) -> str:
    from telecine.tiling.options import show_size

    told = (("predicted", memory.predicted), ("measured", memory.measured), ("on the GPU", memory.device))
    known = [f"{show_size(size)} {name}" for name, size in told if size is not None]
    return f"; memory {', '.join(known)}" if known else ""
