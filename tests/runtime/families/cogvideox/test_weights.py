"""Other weights in a bundle of CogVideoX: a VAE's reach every role, a LoRA is the same model in diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from lora_files import deltas, factors, write_lora

import telecine
from telecine.families.cogvideox.host import Host
from telecine.families.cogvideox.positions import Place
from telecine.pipeline import Pipeline

# Decoded by the graph of a first chunk, and by that of a later one.
CLIP: dict[str, Any] = {
    "prompt": "a red ball", "height": 32, "width": 48, "num_frames": 17, "num_inference_steps": 1, "seed": 0,
    "guidance_scale": 1.0,
}  # fmt: skip


def frames(pipe: Pipeline) -> np.ndarray:
    made = pipe.generate(**CLIP).frames
    assert made is not None
    return made


def test_another_decoder_reaches_every_role_and_back(
    cogvideox: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    source, bundle = cogvideox("2b")
    vae: Any = AutoencoderKLCogVideoX.from_pretrained(source / "vae")
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter *= 1.25
    vae.save_pretrained(tmp_path / "vae")
    with telecine.load(bundle) as pipe, telecine.load(bundle) as fresh:
        before = frames(pipe)  # both graphs are loaded
        pipe.load_weights("vae_decoder", tmp_path / "vae")
        fresh.load_weights("vae_decoder", tmp_path / "vae")
        after = frames(pipe)
        np.testing.assert_array_equal(after, frames(fresh))  # which loaded them with the weights
        for part in (slice(0, 9), slice(9, 17)):
            assert np.abs(after[:, part] - before[:, part]).max() > 0.05
        latents = torch.from_numpy(pipe.generate(**CLIP, output_type="latent").latents)
        with torch.no_grad():
            decoded = vae.decode(latents.transpose(1, 2) / vae.config.scaling_factor).sample
        expected = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1).numpy()
        np.testing.assert_allclose(after, expected, rtol=0, atol=2e-3)  # DESIGN's bound for frames
        pipe.unload_weights("vae_decoder")
        np.testing.assert_array_equal(frames(pipe), before)


def test_a_lora_is_the_same_model_in_diffusers(cogvideox: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    """One call of the transformer, with the factors added to torch's weights: DESIGN's bound for one call, 1e-5."""
    source, bundle = cogvideox("5b")
    layers = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn1.to_out.0", "transformer_blocks.1.ff.net.2")
    pairs = factors(bundle, layers=layers)
    model: Any = CogVideoXTransformer3DModel.from_pretrained(source / "transformer").eval()
    with torch.no_grad():
        for layer, delta in deltas(pairs, 0.7).items():
            model.get_submodule(layer).weight += torch.from_numpy(delta.astype(np.float32))
    with telecine.load(bundle) as pipe:
        pipe.load_lora((write_lora(tmp_path / "lora.safetensors", pairs), 0.7))
        host = Host.parse(pipe.bundle.manifest.host)
        rng = np.random.default_rng(0)
        feeds = {
            "hidden_states": rng.standard_normal((2, 3, host.latent_channels, 4, 6), dtype=np.float32),
            "encoder_hidden_states": rng.standard_normal((2, 5, host.text_channels), dtype=np.float32),
            "timestep": np.full(2, 700, np.float32),
            **host.positions.inputs(Place(3, 2, 3)),
        }
        got = pipe._models.session("transformer").run(feeds)["prediction"]
    given = {name: torch.from_numpy(values) for name, values in feeds.items()}
    rotary = [given[name].flatten(0, 2).repeat_interleave(2, dim=1) for name in ("rope_cos", "rope_sin")]
    with torch.no_grad():
        (expected,) = model(
            hidden_states=given["hidden_states"],
            encoder_hidden_states=given["encoder_hidden_states"],
            timestep=given["timestep"],
            image_rotary_emb=tuple(rotary),
            return_dict=False,
        )
    assert expected.std() > 0.1
    np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=1e-5)
