"""Original names map as diffusers' own conversion maps them, at the published models' sizes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_ltx_transformer_checkpoint_to_diffusers,
    convert_ltx_vae_checkpoint_to_diffusers,
    infer_diffusers_model_type,
)

from telecine.errors import SourceError
from telecine.families.ltx_video.names import transformer_name, transformer_names, vae_names
from telecine_export.checkpoints.checkpoint import Checkpoint
from telecine_export.families.ltx_video.releases import KINDS, RELEASES, T5_XXL, VAE_090, Release, recognise, release_of

DIFFUSERS_TYPES = {
    "0.9.0": "ltx-video", "0.9.1": "ltx-video-0.9.1", "0.9.5": "ltx-video-0.9.5", "0.9.7": "ltx-video-0.9.7",
}  # fmt: skip
# Millions of parameters, counted on the published models' conversion: transformer, VAE encoder, VAE decoder.
MILLIONS = {
    "0.9.0": (1923, 180, 239), "0.9.1": (1923, 180, 755), "0.9.5": (1923, 694, 553), "0.9.7": (13043, 694, 553),
}  # fmt: skip


class Shapes(Checkpoint):
    """Meta tensors: a checkpoint that could not be loaded, so that nobody does."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors, self.origin = tensors, Path("file")

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def stored_as(self, name: str) -> str:
        raise NotImplementedError

    def load(self, name: str) -> torch.Tensor:
        raise NotImplementedError

    def close(self) -> None: ...


def state_dict(component: str, config: Any) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return dict(KINDS[component].build(config).state_dict())


def original(release: Release, layouts: Any) -> dict[str, torch.Tensor]:
    """The release's file, as meta tensors."""
    form = "0.9.5" if release.name == "0.9.7" else release.name
    transformer, vae = state_dict("transformer", release.transformer), state_dict("vae", release.vae)
    return {f"model.diffusion_model.{layouts.transformer(name)}": v for name, v in transformer.items()} | {
        f"vae.{layouts.vae(name, form)}": values for name, values in vae.items()
    }


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_a_published_file_is_recognised_and_maps_as_diffusers_maps_it(release: Release, layouts: Any) -> None:
    tensors = original(release, layouts)
    assert infer_diffusers_model_type(tensors) == DIFFUSERS_TYPES[release.name]
    transformer, vae = (recognise(component, Shapes(tensors)) for component in ("transformer", "vae"))
    assert release_of(transformer.config, vae.config, Path("file")) is release
    theirs = convert_ltx_transformer_checkpoint_to_diffusers(dict(tensors))
    assert {name: id(tensors[old]) for name, old in transformer.names.items()} == {n: id(v) for n, v in theirs.items()}
    theirs = convert_ltx_vae_checkpoint_to_diffusers(dict(tensors))
    assert {name: id(tensors[old]) for name, old in vae.names.items()} == {n: id(v) for n, v in theirs.items()}
    counts = [sum(tensor.numel() for tensor in state_dict("transformer", release.transformer).values())]
    for coder in ("encoder.", "decoder."):
        inside = state_dict("vae", release.vae).items()
        counts.append(sum(values.numel() for name, values in inside if name.startswith(coder)))
    assert tuple(round(count / 1e6) for count in counts) == MILLIONS[release.name]


def test_configurations_are_complete_beyond_the_defaults_of_diffusers_classes() -> None:
    for release in RELEASES:
        for kind, config in ((LTXVideoTransformer3DModel, release.transformer), (AutoencoderKLLTXVideo, release.vae)):
            with torch.device("meta"):
                assert {**kind.from_config(dict(config)).config} | config == {**kind.from_config(dict(config)).config}


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
def test_a_transformer_s_names_with_and_without_prefixes(prefix: str, layouts: Any) -> None:
    names = set(state_dict("transformer", RELEASES[0].transformer))
    old = {f"{prefix}{layouts.transformer(name)}" for name in names}
    assert set(transformer_names(old | {"vae.encoder.conv_in.conv.weight"})) == names
    assert transformer_names(names) == {name: name for name in names}  # diffusers' own
    assert all(transformer_name(name) == name for name in names)


def test_a_vae_s_names_without_a_prefix_and_diffusers_own(layouts: Any) -> None:
    names = set(state_dict("vae", VAE_090))
    assert set(vae_names({layouts.vae(name, "0.9.0") for name in names})) == names
    assert vae_names(names) == {name: name for name in names}
    assert vae_names({"conv.weight"}) == {}


@pytest.mark.parametrize("embedding", ["shared.weight", "encoder.embed_tokens.weight"])
def test_t5_is_recognised_by_either_name_of_its_embedding(embedding: str) -> None:
    tensors = state_dict("text_encoder", T5_XXL)
    tensors = {n: v for n, v in tensors.items() if n not in ("shared.weight", "encoder.embed_tokens.weight")} | {
        embedding: tensors["shared.weight"]
    }
    found = recognise("text_encoder", Shapes(tensors))
    assert found.config is T5_XXL
    assert found.names["shared.weight"] == embedding


def test_what_no_configuration_fits_names_the_first_tensor(layouts: Any) -> None:
    tensors = original(RELEASES[0], layouts)
    name = "model.diffusion_model.transformer_blocks.3.ff.net.2.weight"
    whole = tensors[name]
    del tensors[name]
    with pytest.raises(
        SourceError, match=r"1 tensors differ.*transformer_blocks\.3\.ff\.net\.2\.weight, which is missing"
    ):
        recognise("transformer", Shapes(tensors))
    tensors[name] = whole.T
    with pytest.raises(SourceError, match=r"shape \[8192, 2048\] and not \[2048, 8192\].*0\.9\.0 to 0\.9\.8"):
        recognise("transformer", Shapes(tensors))
    with pytest.raises(SourceError, match="file has no text encoder"):
        recognise("text_encoder", Shapes(tensors))


def test_a_mixture_of_releases_is_no_release() -> None:
    with pytest.raises(SourceError, match="transformer of one release and the VAE of another.*--vae"):
        release_of(RELEASES[3].transformer, RELEASES[0].vae, Path("file"))
