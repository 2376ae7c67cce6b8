"""CogVideoX' networks in their real configurations: what `real_sizes.py` exports and runs of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from telecine.families.cogvideox.chunks import DECODER, ENCODER
from telecine.families.cogvideox.host import make_positions
from telecine.families.cogvideox.positions import Place
from telecine.shapes import Grid, LatentShape
from telecine_export.families.cogvideox import networks, vae
from telecine_export.families.cogvideox.networks import OFS
from telecine_export.families.cogvideox.releases import TRANSFORMERS, VAE
from telecine_export.graphs import GraphSpec

Array = npt.NDArray[Any]
Config = Mapping[str, Any]
Feeds = dict[str, Array]

# Exported at fp16 where float32 weights alone are more than most machines hold.
PRECISIONS = {"2b": "fp32", "5b": "fp16", "5b-I2V": "fp16", "1.5-5b": "fp16", "1.5-5b-I2V": "fp16"}
TEXT_LENGTH = 226
# 240 tokens of 1.0, 120 of 1.5; a clip of two chunks: 17 frames of 64 x 64.
TOKENS, CLIP = LatentShape(frames=4, height=12, width=20), LatentShape(frames=5, height=8, width=8)
CHUNKED = {"vae_encoder": ENCODER, "vae_decoder": DECODER}


def settings() -> dict[str, tuple[str, Config, Any, LatentShape, str]]:
    """By name: the checkpoint, its configuration, what makes its graphs, what they are run on, and the precision."""
    return {
        **{
            f"transformer CogVideoX-{name}": ("transformer", config, transformer_graphs, TOKENS, PRECISIONS[name])
            for name, config in TRANSFORMERS.items()
        },
        "vae_encoder CogVideoX": ("vae", VAE, vae.encoder_graphs, CLIP, "fp32"),
        "vae_decoder CogVideoX": ("vae", VAE, vae.decoder_graphs, CLIP, "fp32"),
    }


def transformer_graphs(config: Config) -> list[GraphSpec]:
    return [networks.transformer(config)]


def feeds(config: Config, component: str, latent: LatentShape, random: np.random.Generator) -> Feeds:
    """Random inputs of one video; of the VAE whole ones, which its graphs run on in chunks."""

    def normal(*shape: int) -> Array:
        return random.standard_normal(shape, dtype=np.float32)

    grid = Grid(
        spatial=8, temporal=4, patch=config.get("patch_size", 1), patch_t=config.get("patch_size_t") or 1, chunked=True
    )
    if component == "vae_encoder":
        video = latent.video(grid)
        return {"video": np.tanh(normal(1, 3, video.num_frames, video.height, video.width))}
    if component == "vae_decoder":
        return {"latents": normal(*latent.array_shape(1, config["latent_channels"]))}
    if config["use_learned_positional_embeddings"]:  # of one size
        frames = (config["sample_frames"] - 1) // grid.temporal + 1
        latent = LatentShape(frames=frames, height=config["sample_height"], width=config["sample_width"])
    inputs = {
        "hidden_states": normal(1, latent.frames, config["in_channels"], latent.height, latent.width),
        "encoder_hidden_states": normal(1, TEXT_LENGTH, config["text_embed_dim"]),
        "timestep": np.array([700.0], np.float32),
        **make_positions(networks.positions(config)).inputs(Place.of(latent, grid)),
    }
    return inputs | ({"ofs": np.array([OFS], np.float32)} if config["ofs_embed_dim"] else {})


def reference(model: Any, inputs: Feeds) -> Tensor:
    """What diffusers' module makes of them."""
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if "video" in given:
        moments: Tensor = model.encode(given["video"]).latent_dist.parameters
        return moments
    if "latents" in given:
        frames: Tensor = model.decode(given["latents"]).sample
        return frames
    rotary = None
    if "rope_cos" in given:  # a value a pair here, two in diffusers
        rotary = tuple(given[name].flatten(0, 2).repeat_interleave(2, dim=1) for name in ("rope_cos", "rope_sin"))
    (prediction,) = model(
        hidden_states=given["hidden_states"],
        encoder_hidden_states=given["encoder_hidden_states"],
        timestep=given["timestep"],
        ofs=given.get("ofs"),
        image_rotary_emb=rotary,
        return_dict=False,
    )
    made: Tensor = prediction
    return made
