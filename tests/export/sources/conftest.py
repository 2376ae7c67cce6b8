"""The tiny checkpoint in other layouts, by a mapping of names that is written here, from diffusers' to the original."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file
from traces import load

from telecine.manifest import Manifest
from telecine_export.families.ltx_video import releases
from telecine_export.families.ltx_video.releases import STATIC, Release
from telecine_export.graphs import GraphSpec
from telecine_export.precision import typed

Tensors = dict[str, torch.Tensor]

TRANSFORMER_NAMES = {
    "proj_in.": "patchify_proj.",
    "time_embed.": "adaln_single.",
    ".norm_q.": ".q_norm.",
    ".norm_k.": ".k_norm.",
}
# A stage's place in the original row of blocks: (resnets, resampler, widening resnet).
FIRST_ENCODER = {"0": (0, 1, 2), "1": (3, 4, 5), "2": (6, 7, None), "3": (8, None, None), "mid": (9, None, None)}
FIRST_DECODER = {"mid": (0, None, None), "0": (1, None, None), "1": (3, 2, None), "2": (6, 5, 4), "3": (9, 8, 7)}
LATER_ENCODER = {str(i): (2 * i, 2 * i + 1, None) for i in range(4)} | {"mid": (8, None, None)}
LATER_DECODER = {"mid": (0, None, None)} | {str(i): (2 * i + 2, 2 * i + 1, None) for i in range(4)}
BLOCKS = {
    "0.9.0": (FIRST_ENCODER, FIRST_DECODER),
    "0.9.1": (FIRST_ENCODER, LATER_DECODER),
    "0.9.5": (LATER_ENCODER, LATER_DECODER),
}
STAGE = re.compile(
    r"(encoder|decoder)\.(?:(?:down|up)_blocks\.(\d)|(mid)_block)\.(?:((?:down|up)samplers\.0|conv_\w+)\.)?"
)


def original_transformer_name(name: str) -> str:
    for ours, theirs in TRANSFORMER_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def original_vae_name(name: str, release: str) -> str:
    blocks = dict(zip(("encoder", "decoder"), BLOCKS[release], strict=True))

    def place(match: re.Match[str]) -> str:
        resnets, resampler, widener = blocks[match[1]][match[2] or match[3]]
        inner = match[4] or ""
        number = widener if inner.startswith("conv") else resampler if inner else resnets
        return f"{match[1]}.{'down' if match[1] == 'encoder' else 'up'}_blocks.{number}."

    name = STAGE.sub(place, name).replace("resnets", "res_blocks")
    name = name.replace("conv_shortcut.conv.", "conv_shortcut.").replace(".norm3.", ".norm3.norm.")
    name = re.sub(r"^decoder\.(time_embedder|scale_shift_table)", r"decoder.last_\1", name)
    statistics = {"latents_mean": "mean-of-means", "latents_std": "std-of-means"}
    return f"per_channel_statistics.{statistics[name]}" if name in statistics else name


@pytest.fixture(scope="session")
def layouts() -> SimpleNamespace:
    """The original files' names for diffusers' ones."""
    return SimpleNamespace(transformer=original_transformer_name, vae=original_vae_name)


def component_tensors(source: Path, component: str) -> Tensors:
    (file,) = (source / component).glob("*.safetensors")
    return load_file(file)


def original_tensors(source: Path) -> Tensors:
    """The tiny checkpoint's transformer and VAE (which has 0.9.5's form) as an original file holds them."""
    transformer = component_tensors(source, "transformer")
    vae = component_tensors(source, "vae")
    return (
        {f"model.diffusion_model.{original_transformer_name(name)}": values for name, values in transformer.items()}
        | {f"vae.{original_vae_name(name, '0.9.5')}": values for name, values in vae.items()}
        | {"vae.per_channel_statistics.channel": torch.arange(16.0)}  # what the original files have besides
    )


@pytest.fixture(scope="session")
def original_file(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_source`'s transformer and VAE in one file, under a name that says nothing."""
    file = tmp_path_factory.mktemp("original") / "model.safetensors"
    save_file(original_tensors(tiny_source), file, metadata={"config": json.dumps({"transformer": {"num_layers": 99}})})
    return file


@pytest.fixture
def tiny_release(tiny_source: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """As if the tiny model had been published: known by its tensors alone."""

    def config(component: str) -> Mapping[str, object]:
        content: Mapping[str, object] = json.loads((tiny_source / component / "config.json").read_text())
        return content

    release = Release(
        name="tiny",
        transformer=config("transformer"),
        vae=config("vae"),
        scheduler=STATIC,
        pipeline_class="LTXPipeline",
    )
    monkeypatch.setattr(releases, "RELEASES", (*releases.RELEASES, release))
    return release


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Tensors], Path]:
    """`written(tensors)`: a safetensors file of them."""

    def write(tensors: Tensors, name: str = "file.safetensors", **metadata: str) -> Path:
        save_file({key: values.contiguous() for key, values in tensors.items()}, tmp_path / name, metadata or None)
        return tmp_path / name

    return write


@pytest.fixture
def weight_hashes() -> Callable[[Manifest], dict[str, str]]:
    return lambda manifest: {name: component.weights.sha256 for name, component in manifest.components.items()}


@pytest.fixture
def traced_before(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take the graphs of a bundle of the same shapes, without their weights: tracing is not what is tested."""

    def traced(spec: GraphSpec, **options: Any) -> ir.Model:
        return load(tiny_bundle / spec.component / f"{spec.role}.onnx")

    monkeypatch.setattr(typed, "trace", traced)
