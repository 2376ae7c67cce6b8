"""Other weights in a bundle of LTX-2: LoRA files in diffusers' and the original layout, refits, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTX2Pipeline
from lora_files import Factors, factors, write_lora
from safetensors.numpy import load_file, save_file

import telecine
from telecine.bundle import Bundle
from telecine.errors import SourceError
from telecine.graph_weights import GraphWeights
from telecine.lora import Lora
from telecine.pipeline import Pipeline
from telecine.refit import refitted_bundle
from telecine_export.source import open_source
from telecine_export.verify.ltx2 import _transformer_cases, _velocities
from telecine_export.verify.modules import load_module

Ltx2 = Callable[[str], tuple[Path, Path, Path]]
# diffusers' names of some layers by those of the original repository.
LAYERS = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single.linear": "time_embed.linear",
    "audio_adaln_single.emb.timestep_embedder.linear_1": "audio_time_embed.emb.timestep_embedder.linear_1",
    "prompt_adaln_single.linear": "prompt_adaln.linear",
    "audio_prompt_adaln_single.linear": "audio_prompt_adaln.linear",
    "av_ca_video_scale_shift_adaln_single.linear": "av_cross_attn_video_scale_shift.linear",
    "av_ca_audio_scale_shift_adaln_single.linear": "av_cross_attn_audio_scale_shift.linear",
    "av_ca_a2v_gate_adaln_single.linear": "av_cross_attn_video_a2v_gate.linear",
    "av_ca_v2a_gate_adaln_single.linear": "av_cross_attn_audio_v2a_gate.linear",
    **{
        f"transformer_blocks.{layer}": f"transformer_blocks.{layer}"
        for layer in (
            "0.attn1.to_q", "0.audio_attn2.to_k", "0.audio_to_video_attn.to_out.0", "1.video_to_audio_attn.to_v",
            "1.ff.net.0.proj", "1.audio_ff.net.2",
        )
    },
}  # fmt: skip
SCALE = 0.7


@pytest.fixture(scope="module")
def pairs(ltx2: Ltx2) -> Factors:
    return factors(ltx2("2.3")[2], layers=list(LAYERS.values()))


@pytest.fixture
def original(pairs: Factors, tmp_path: Path) -> Path:
    """The factors under the original repository's names."""
    tensors = {}
    for name, layer in LAYERS.items():
        for part, values in zip("AB", pairs[layer], strict=True):
            tensors[f"diffusion_model.{name}.lora_{part}.weight"] = values
    save_file(tensors, tmp_path / "original.safetensors")
    return tmp_path / "original.safetensors"


def run(pipe: Pipeline, source: Path) -> tuple[list[np.ndarray], Any]:
    """Both velocities of one call, and what it was called with."""
    case = _transformer_cases(pipe.bundle, open_source(str(source)))[1]
    made = pipe._models.session("transformer").run(case.feeds)
    return [made["velocity"], made["audio_velocity"]], case


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_lora_is_the_same_model_in_diffusers(
    layout: str, ltx2: Ltx2, pairs: Factors, original: Path, tmp_path: Path
) -> None:
    """One call, with the factors added to torch's weights where diffusers' reader of LoRA files says.

    DESIGN's bound for one call, 1e-5 of the largest value: these factors take velocities beyond 1.
    """
    source, _, bundle = ltx2("2.3")
    file = original if layout == "original" else write_lora(tmp_path / "lora.safetensors", pairs)
    read: Any = LTX2Pipeline.lora_state_dict(file)
    module: Any = load_module(open_source(str(source)), "transformer")
    downs = [name for name in read if name.endswith(".lora_A.weight")]
    assert len(downs) == len(LAYERS)
    with torch.no_grad():
        for down in downs:
            layer = down.removeprefix("transformer.").removesuffix(".lora_A.weight")
            delta = read[down.replace("lora_A", "lora_B")].double() @ read[down].double()
            module.get_submodule(layer).weight += (SCALE * delta).float()
    with telecine.load(bundle) as pipe:
        before, _ = run(pipe, source)
        pipe.load_lora((file, SCALE))
        made, case = run(pipe, source)
        pipe.unload_lora()
        after, _ = run(pipe, source)
    with torch.no_grad():
        expected = [each.numpy() for each in _velocities(module, case)]
    for ours, theirs, first, last in zip(made, expected, before, after, strict=True):
        assert np.abs(ours - first).max() > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))
        np.testing.assert_array_equal(last, first)


@pytest.mark.slow
def test_a_refitted_bundle_is_the_lora_loaded(ltx2: Ltx2, original: Path, tmp_path: Path) -> None:
    source, _, path = ltx2("2.3")
    bundle = Bundle.open(path)
    with telecine.load(bundle.root) as pipe:
        pipe.load_lora(original)
        expected, _ = run(pipe, source)
    with refitted_bundle(bundle, tmp_path / "refitted", loras=[Lora(file=original)], weights={}) as refitted:
        assert len(refitted.component("transformer").refitted) == 1
    with telecine.load(tmp_path / "refitted") as pipe:
        for ours, theirs in zip(run(pipe, source)[0], expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("component", "folder"),
    [
        ("connectors", "connectors"), ("transformer", "transformer"), ("vae_encoder", "vae"), ("vae_decoder", "vae"),
        ("audio_vae_decoder", "audio_vae"), ("vocoder", "vocoder"), ("latent_upsampler", "latent_upsampler"),
    ],
)  # fmt: skip
def test_a_fine_tune_reaches_every_weight(component: str, folder: str, ltx2: Ltx2, tmp_path: Path) -> None:
    """All weights of a checkpoint, halved: exact in float32."""
    source, upscaler, path = ltx2("2.3")
    (stored,) = ((upscaler if folder == "latent_upsampler" else source) / folder).glob("*.safetensors")
    tensors = load_file(stored)
    kept = ("latents_mean", "latents_std")  # of the host, not the graphs
    save_file(
        {name: values if name in kept else values / 2 for name, values in tensors.items()},
        tmp_path / "tuned.safetensors",
    )
    bundle = Bundle.open(path)
    with refitted_bundle(
        bundle, tmp_path / "refitted", weights={component: tmp_path / "tuned.safetensors"}
    ) as refitted:
        weights = refitted.component(component).weights
        before = np.fromfile(bundle.path(bundle.component(component).weights), np.float32)
        np.testing.assert_array_equal(np.fromfile(refitted.path(weights), np.float32), before / 2)


def test_a_sound_of_other_statistics_is_refused(ltx2: Ltx2, tmp_path: Path) -> None:
    """The audio VAE's own: those of the video have the same names."""
    source, _, bundle = ltx2("2.3")
    (stored,) = (source / "audio_vae").glob("*.safetensors")
    tensors = load_file(stored)
    save_file({**tensors, "latents_std": 2 * tensors["latents_std"]}, tmp_path / "tuned.safetensors")
    with telecine.load(bundle) as pipe, pytest.raises(SourceError, match="has another latents_std"):
        pipe.load_weights("audio_vae_decoder", tmp_path / "tuned.safetensors")


@pytest.mark.parametrize(
    "key", ["connectors.text_proj_in", "text_embedding_projection.aggregate_embed", "transformer.blocks.0.attn1.to_q"]
)
def test_layers_of_other_components_are_refused(key: str, ltx2: Ltx2, tmp_path: Path) -> None:
    """diffusers loads into the connectors too; telecine says that it does not, instead of dropping a part."""
    bundle = ltx2("2.3")[2]
    tensors = {f"{key}.lora_{part}.weight": np.zeros((4, 4), np.float32) for part in "AB"}
    save_file(tensors, tmp_path / "other.safetensors")
    problem = f"2 tensors that match no weight of .*: {key}"
    with telecine.load(bundle) as pipe, pytest.raises(SourceError, match=problem):
        pipe.load_lora(tmp_path / "other.safetensors")


def test_gemma_alone_is_refused_with_what_it_lacks(ltx2: Ltx2) -> None:
    """The text encoder's graph ends in projections that the connectors' checkpoint has."""
    source, _, path = ltx2("2.3")
    bundle = Bundle.open(path)
    assert "video_text_proj_in.weight" in GraphWeights.open(bundle, "text_encoder").names()
    with telecine.load(path) as pipe, pytest.raises(SourceError, match="has no (audio|video)_text_proj_in"):
        pipe.load_weights("text_encoder", source / "text_encoder")
