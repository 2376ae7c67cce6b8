"""The command line: parse, one library call, print. Logs go to stderr, results to stdout.

Exit codes: 0 done, 1 a telecine error or a failed check, 2 wrong usage.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from telecine.errors import BackendError, RequestError, TelecineError

F = TypeVar("F", bound=Callable[..., Any])

# The extra that brings a package which is missing on a machine.
EXTRAS = {"av": "video", "onnxruntime": "onnxruntime"} | dict.fromkeys(
    ("torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript", "huggingface_hub", "sentencepiece", "tqdm"),
    "export",
)


class _Group(click.Group):
    """Maps errors to exit codes: the one place that does. Click itself maps Ctrl-C to 1 and usage errors to 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TelecineError as error:
            problem = error
        except ImportError as error:
            problem = _missing(error, EXTRAS.get((error.name or "").partition(".")[0]))
        except MemoryError as error:
            problem = BackendError(
                f"out of memory{f': {error}' if str(error) else ''}",
                expected="a task that fits this machine's memory",
                fix="Ask for less, or free memory.",
            )
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends quietly when whoever reads stdout has gone
            problem = TelecineError(
                f"the system refused: {error}",
                expected="files that can be read and written",
                fix="Check disk and paths.",
            )
        click.echo(f"telecine: {problem}", err=True)
        ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="telecine")
@click.option("-v", "--verbose", is_flag=True, help="Log more to stderr.")
def main(verbose: bool) -> None:
    """Video diffusion models on ONNX Runtime, without PyTorch at run time."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="telecine: %(message)s")


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")(command)


@main.command()
@click.argument("source")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--precision", default="fp32", show_default=True, help="Precision of every component (fp32 so far).")
@click.option("--opset", type=int, default=23, show_default=True, help="ONNX opset: 23, or 20 for older TensorRT.")
@click.option("--revision", help="Revision of a hub id.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that exists, once the new one is whole.")
@json_option
def export(
    source: str, bundle: Path, precision: str, opset: int, revision: str | None, overwrite: bool, as_json: bool
) -> None:
    """Turn SOURCE (a diffusers folder or a hub id) into the folder BUNDLE."""
    with _extra("export"):
        from telecine_export.export import ComponentReport, export_bundle
        from telecine_export.progress import progress_bars
        from telecine_export.source import open_source
    reports: list[ComponentReport] = []
    with progress_bars(reports.append) as progress:
        export_bundle(
            open_source(source, revision=revision),
            bundle,
            precision=precision,
            opset=opset,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        _print_json({"bundle": str(bundle), "components": [dataclasses.asdict(report) for report in reports]})
    else:
        click.echo(bundle)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("source")
@click.option("--revision", help="Revision of a hub id.")
@click.option("--stage", "stages", multiple=True, help="Verify this stage only; repeat for several.")
@json_option
def verify(bundle: Path, source: str, revision: str | None, stages: tuple[str, ...], as_json: bool) -> None:
    """Compare BUNDLE with SOURCE under torch, stage by stage, at sizes that were not traced."""
    with _extra("export"):
        from telecine_export.source import open_source
        from telecine_export.verify import as_text, verify_bundle
    report = verify_bundle(bundle, open_source(source, revision=revision), stages=stages or None)
    if as_json:
        _print_json(dataclasses.asdict(report))
    else:
        click.echo(as_text(report))
    if not report.passed:
        sys.exit(1)


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Hash the weights too.")
@json_option
def inspect(path: Path, check: bool, as_json: bool) -> None:
    """Print what the bundle PATH holds: graphs, axes, precisions, parameters, bytes, presets."""
    from telecine.bundle import Bundle
    from telecine.inspection import as_text

    bundle = Bundle.open(path)
    if check:
        bundle.check_weights()
    if as_json:
        _print_json(dataclasses.asdict(bundle.manifest))
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
        _print_json([dataclasses.asdict(check) for check in checks])
    else:
        click.echo(as_text(checks))
    if any(check.status == "fail" for check in checks):
        sys.exit(1)


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
    with telecine.load(bundle, backend=backend, device=device, options=options) as pipe, _steps() as callback:
        result = pipe.generate(**parameters, callback=callback)
    if latent:
        paths = [_save_latents(result.latents, output)]
    else:
        paths = result.save(output, frame_rate=file_frame_rate, quality=quality)
    if as_json:
        _print_json({"files": [str(path) for path in paths], "seeds": result.seeds, "seconds": dict(result.timings)})
    else:
        for path in paths:
            click.echo(path)
        click.echo(
            f"seed {', '.join(map(str, result.seeds))}; "
            + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.timings.items()),
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
    from telecine.pipeline import numbered
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


class _steps:
    """A progress bar of the denoising steps, as a callback; silent when stderr is not a terminal."""

    def __enter__(self) -> Callable[..., None]:
        self._bar: Any = None
        return self._step

    def _step(self, step: int, steps: int, sigma: float, latents: Any) -> None:
        if not sys.stderr.isatty():
            return  # click would still print the label
        if self._bar is None:
            self._bar = click.progressbar(length=steps, label="denoising", file=sys.stderr)
            self._bar.__enter__()
        self._bar.update(1)

    def __exit__(self, *exception: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(*exception)


class _extra:
    """Turns a missing package of an extra into an error that names the extra."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ImportError):
            raise _missing(error, self._name) from error


def _missing(error: ImportError, extra: str | None) -> BackendError:
    """What to install; a package that is there but broken is not called missing."""
    return BackendError(
        f"{error.name} is not installed" if isinstance(error, ModuleNotFoundError) else f"an import failed: {error}",
        expected=f"the packages of telecine's extra {extra}" if extra else "a complete installation",
        fix=f'Run: pip install "telecine[{extra}]"' if extra else "Run: telecine doctor",
    )


def _print_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=2))
