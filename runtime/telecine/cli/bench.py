"""telecine bench: speed, memory and size of a bundle, alone or next to diffusers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from telecine.cli.group import json_option, main, print_json
from telecine.errors import RequestError

if TYPE_CHECKING:
    from telecine.bench.competitor import Competitor
    from telecine.bench.settings import Settings
    from telecine.bundle import Bundle

FEWEST_TOKENS = 512  # the second size of a sweep


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", metavar="SOURCE", help="Run diffusers on this folder or hub id beside it.")
@click.option("--compile", "compiled", is_flag=True, help="With --against: torch.compile as well.")
@click.option("--width", type=int, default=512, show_default=True)
@click.option("--height", type=int, default=512, show_default=True)
@click.option("--num-frames", type=int, default=25, show_default=True)
@click.option("--num-inference-steps", type=int, default=8, show_default=True)
@click.option("--guidance-scale", type=float, default=3.0, show_default=True)
@click.option("--repeats", type=int, default=5, show_default=True, help="Generations of each that count.")
@click.option("--warmups", type=int, default=1, show_default=True, help="Generations of each that do not.")
@click.option("--threads", type=int, help="Of one operator. Default: the cores that there are.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--fresh", type=int, default=0, metavar="N", help="Start-up and peak memory, of N fresh processes each.")
@click.option("--installed", "sizes", is_flag=True, help="Bytes of the packages that are needed.")
@click.option("--roofline", is_flag=True, help="With --against: the machine's own rates, and the fraction reached.")
@click.option("--host", is_flag=True, help="The array work of a step at 768x512x121.")
@click.option("--sweep", "most_tokens", type=int, metavar="TOKENS", help="Growth, from 256 to so many tokens.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the sweep, as .svg.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the results, as .json.")
@json_option
def bench(
    bundle: Path, against: str | None, compiled: bool, threads: int | None, fresh: int, sizes: bool,
    roofline: bool, host: bool, most_tokens: int | None, plot: Path | None, output: Path | None, as_json: bool,
    **parameters: Any,
) -> None:  # fmt: skip
    """Measure BUNDLE: the same generations side by side in one process, interleaved, as medians with quartiles."""
    from telecine.bench.measure import Measurement, measure
    from telecine.bench.ours import Telecine
    from telecine.bench.report import as_text
    from telecine.bench.settings import Settings
    from telecine.bundle import Bundle
    from telecine.families import FAMILIES

    settings = Settings(threads=threads or len(os.sched_getaffinity(0)), **parameters)
    _check(against, {"--compile": compiled, "--roofline": roofline})
    _check_sweep_and_files(most_tokens, plot, output)
    opened = Bundle.open(bundle)
    family = FAMILIES[opened.manifest.family]
    settings = settings.of_family(family.refuses, family.bench)
    asked = Measurement(
        competitors=[
            lambda: Telecine(bundle, threads=settings.threads, device=settings.device),
            *_diffusers(opened, against, compiled, settings),
        ],
        processes=_processes(bundle, against),
        fresh=fresh,
        installed=_requirements(against) if sizes else {},
        step_flops=_step_flops(opened, against, settings) if roofline and against else None,
        host=host,
        most_tokens=most_tokens,
    )
    results = measure(opened, settings, asked, progress=lambda text: click.echo(text, err=True))
    if output:
        _write(output, _as_json(results))
    if plot:
        from telecine.bench.plot import as_svg

        _write(plot, as_svg(results["sweep"]))
    if as_json:
        print_json(results)
    else:
        click.echo(as_text(results))


def _check(against: str | None, needing: dict[str, bool]) -> None:
    """Refuse what would not act without diffusers."""
    for option, given in needing.items():
        if given and against is None:
            raise RequestError(
                f"{option} without --against", expected="the source of the bundle", fix="Add --against SOURCE."
            )


def _check_sweep_and_files(most_tokens: int | None, plot: Path | None, output: Path | None) -> None:
    """Refuse, before the minutes of measuring, what there would be nothing of, or no file for."""
    from telecine.atomic import check_writable

    if most_tokens is not None and most_tokens < FEWEST_TOKENS:
        raise RequestError(
            f"--sweep {most_tokens}", expected=f"{FEWEST_TOKENS} tokens or more: two sizes", fix="Use --sweep 4096."
        )
    if plot is not None and most_tokens is None:
        raise RequestError("--plot without --sweep", expected="a sweep to draw", fix="Add --sweep 4096.")
    for path, suffix in ((plot, ".svg"), (output, ".json")):
        if path is not None:
            if path.suffix != suffix:
                raise RequestError(f"{path}", expected=f"a {suffix} file", fix=f"Name it {path.stem}{suffix}.")
            check_writable(path)


def _diffusers(
    bundle: Bundle, against: str | None, compiled: bool, settings: Settings
) -> list[Callable[[], Competitor]]:
    if against is None:
        return []
    from telecine_export.bench.competitor import Diffusers, open_pipeline

    precision = bundle.component("transformer").precision

    def make(compiled: bool) -> Callable[[], Competitor]:
        return lambda: Diffusers(
            open_pipeline(against, precision), threads=settings.threads, device=settings.device, compiled=compiled
        )

    return [make(False), make(True)] if compiled else [make(False)]


def _processes(bundle: Path, against: str | None) -> dict[str, tuple[str, str]]:
    """Module and path of what runs in fresh processes."""
    from telecine.bench.fresh import OURS

    ours = {"telecine": (OURS, str(bundle))}
    if against is None:
        return ours
    return ours | {"diffusers": ("telecine_export.bench.fresh", against)}


def _requirements(against: str | None) -> dict[str, tuple[str, ...]]:
    from telecine.bench.installed import DIFFUSERS, RUNTIME

    return {"telecine": RUNTIME} | ({"diffusers": DIFFUSERS} if against else {})


def _step_flops(bundle: Bundle, against: str, settings: Settings) -> int:
    from telecine.families import FAMILIES
    from telecine.shapes import VideoShape
    from telecine_export.bench.flops import step_flops
    from telecine_export.source import open_source

    family = FAMILIES[bundle.manifest.family]
    grid = family.grid(bundle.manifest.host)
    video = VideoShape.from_request(
        num_frames=settings.num_frames, height=settings.height, width=settings.width, grid=grid
    )
    latent = video.latent(grid).padded(grid)
    text_length = family.pipelines[bundle.manifest.pipeline].defaults["max_sequence_length"]  # pads are run too
    passes = 2 if settings.guidance_scale > 1 else 1
    return step_flops(open_source(against), latent, batch=passes, text_length=text_length)


def _as_json(results: dict[str, Any]) -> str:
    """A kind of result a line, five digits of every number: a file to keep, and to compare with the next one."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        if isinstance(value, dict):
            return {key: rounded(each) for key, each in value.items()}
        return [rounded(each) for each in value] if isinstance(value, (list, tuple)) else value

    return (
        "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(rounded(each))}" for key, each in results.items()) + "\n}\n"
    )


def _write(path: Path, text: str) -> None:
    from telecine.atomic import atomic_file

    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
