"""telecine triton: a bundle as a model repository of NVIDIA's Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from telecine.cli.group import json_option, main, print_json


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("repository", type=click.Path(path_type=Path))
@click.option("--name", default="telecine", show_default=True, help="Of the model.")
@click.option("--model-version", type=int, default=1, show_default=True, help="The number of its version folder.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    default=("auto",),
    show_default=True,
    help="cpu, cuda (every GPU that the server sees), cuda:N (repeat for several); auto: GPUs where there are any.",
)
@click.option("--instances", type=int, default=1, show_default=True, help="Processes on each device, with own weights.")
@click.option(
    "--concurrency", type=int, default=1, show_default=True, help="Requests at a time in a process, sharing weights."
)
@click.option("--backend", default="auto", show_default=True, help="auto, onnxruntime or tensorrt.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of one operator of ONNX Runtime.")
@click.option("--engines", type=click.Path(path_type=Path), help="Folder of TensorRT engines. Default: BUNDLE/engines.")
@click.option(
    "--environment",
    metavar="PATH",
    help="On the server: the virtual environment, or conda-pack archive, that has telecine. Default: its own Python.",
)
@click.option(
    "--graphs", multiple=True, help="onnxruntime, tensorrt: a model of every graph besides, for that backend of Triton."
)
@click.option("--overwrite", is_flag=True, help="Replace a repository that this command wrote.")
@json_option
def triton(
    bundle: Path, repository: Path, model_version: int, devices: tuple[str, ...], instances: int, overwrite: bool,
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Write REPOSITORY, from which Triton Inference Server serves BUNDLE."""
    from telecine.bundle import Bundle
    from telecine.serving.triton.config import Placement
    from telecine.serving.triton.repository import RepositoryOptions, write_repository

    asked = RepositoryOptions(version=model_version, placement=Placement(devices=devices, count=instances), **options)
    models = write_repository(Bundle.open(bundle), repository, asked, overwrite=overwrite)
    if as_json:
        print_json({"repository": str(repository), "models": models})
    else:
        click.echo(repository)
        click.echo(f"models: {', '.join(models)}", err=True)
