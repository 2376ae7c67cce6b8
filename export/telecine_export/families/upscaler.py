"""`--upscaler`: add a latent upsampler that lies in a checkpoint of its own to a source."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from telecine.errors import SourceError
from telecine_export.checkpoints.safetensors_files import SafetensorsCheckpoint
from telecine_export.components import CONFIG_FILE, Component, FileComponent, FolderComponent
from telecine_export.source import Source, open_source

# diffusers' pipelines of upscalers, and their models, by the pipelines whose latents they make larger.
UPSCALERS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"),
        ("LTXLatentUpsamplePipeline", "LTXLatentUpsamplerModel"),
    ),
    **dict.fromkeys(
        ("LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline"),
        ("LTX2LatentUpsamplePipeline", "LTX2LatentUpsamplerModel"),
    ),
}
LATENT_UPSAMPLER = "latent_upsampler"
STATISTICS = ("latents_mean", "latents_std")
# bfloat16 keeps 8 bits: the same statistics may differ by this much, of two VAEs by far more.
SAME = 2.0**-7


def with_upscaler(source: Source, upscaler: str) -> Source:
    """The source with a latent upsampler: a pipeline folder, a component folder, a hub id or an original single file.

    Raises:
        SourceError: no upscaler there, one of another family, or one whose VAE has other latents than the source's.
    """
    if source.pipeline_class not in UPSCALERS:
        raise SourceError(
            f"an upscaler for a {source.pipeline_class}",
            expected=f"none, or a model that there are upscalers for: {', '.join(UPSCALERS)}",
            fix="Leave --upscaler out.",
        )
    pipeline_class, model_class = UPSCALERS[source.pipeline_class]
    path = Path(os.path.expanduser(upscaler))
    part: Component
    if path.is_file():
        part = _original(path)
    elif (path / CONFIG_FILE).is_file():
        part = FolderComponent(path)
    else:
        pipeline = open_source(upscaler)
        if pipeline.pipeline_class != pipeline_class:
            raise SourceError(
                f"{upscaler} is a {pipeline.pipeline_class}",
                expected=f"a {pipeline_class}, its latent_upsampler folder, or an original upscaler's .safetensors",
                fix="Give the model as SOURCE and its upscaler to --upscaler.",
            )
        part = pipeline.component(LATENT_UPSAMPLER)
        if (pipeline.root / "vae").is_dir():  # some are published without one
            _check_statistics(source, pipeline)
    config = part.config()
    if "mid_channels" not in config:
        raise SourceError(
            f"{upscaler} has a configuration without mid_channels",
            expected="a latent upsampler's",
            fix="Check that --upscaler names the upscaler, not the model.",
        )
    others = {model for _, model in UPSCALERS.values()} - {model_class}
    if config.get("_class_name") in others:  # original files have names of their own, or none
        raise SourceError(
            f"{upscaler} has a {config['_class_name']}",
            expected=f"a {model_class}, for a {source.pipeline_class}",
            fix="Take the upscaler that was made for this model.",
        )
    return dataclasses.replace(source, components={**source.components, LATENT_UPSAMPLER: part})


def _original(path: Path) -> FileComponent:
    """An upscaler of the original repository: diffusers' tensor names, and the configuration in the file's metadata."""
    file = SafetensorsCheckpoint([path], path)
    with file:
        names = {name: name for name in file.names()}
        try:
            config = json.loads(file.metadata.get("config", "null"))
        except ValueError as error:
            raise SourceError(
                f"the configuration in {path} cannot be read: {error}", expected="JSON", fix="Download it again."
            ) from error
    if not isinstance(config, dict):
        raise SourceError(
            f"{path} has no configuration in its metadata",
            expected="an upscaler as Lightricks publishes it, or one that diffusers saved",
            fix="Pass the folder that holds it and its config.json.",
        )
    return FileComponent(path, config, names)


def _check_statistics(source: Source, upscaler: Source) -> None:
    """Refuse an upscaler that was trained on another VAE's latents, where its checkpoint has that VAE."""
    with source.checkpoint("vae") as ours, upscaler.checkpoint("vae") as theirs:
        for name in STATISTICS:
            a, b = ours.load(name).float(), theirs.load(name).float()
            if a.shape != b.shape or not torch.allclose(a, b, rtol=SAME, atol=SAME):
                apart = f"by {(a - b).abs().max():.2g}" if a.shape == b.shape else f"in shape, {tuple(b.shape)}"
                raise SourceError(
                    f"{upscaler.root}/vae differs from {source.root}/vae in {name} ({apart})",
                    expected="one VAE for both: the upscaler works on its latents",
                    fix="Take the upscaler that was made for this model.",
                )
