"""LTX-Video's networks in their real configurations: what `real_sizes.py` feeds them, and torch's answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from telecine.families.ltx_video.decode import InjectedNoise
from telecine.families.ltx_video.host import NoiseLevel
from telecine.noise import second_stream
from telecine.rope import grid_index, make_tables, video_positions
from telecine.shapes import Grid, LatentShape
from telecine_export.families.ltx_video import networks
from telecine_export.graphs import GraphSpec

Array = npt.NDArray[Any]
Config = Mapping[str, Any]
Feeds = dict[str, Array]

SEED = 0  # of the decoder's noise


def feeds(config: Config, spec: GraphSpec, latent: LatentShape, random: np.random.Generator) -> Feeds:
    """Random inputs of a graph, of one video."""

    def normal(*shape: int) -> Array:
        return random.standard_normal(shape, dtype=np.float32)

    if spec.component == "transformer":
        frequencies = networks.rope_frequencies(config).numpy()
        rope = make_tables(video_positions(latent, Grid(spatial=32, temporal=8), 25.0), grid_index(latent), frequencies)
        return {
            "hidden_states": normal(1, latent.tokens, config["in_channels"]),
            "encoder_hidden_states": normal(1, 16, config["caption_channels"]),
            "encoder_attention_mask": (np.arange(16) < 11).astype(np.float32)[np.newaxis],
            "timestep": np.array([[700.0]], np.float32),
            "rope_cos": rope.cos,
            "rope_sin": rope.sin,
            "rope_index": rope.index,
            "stg_mode": np.zeros((config["num_layers"], 1), np.int32),
        }
    if spec.component == "text_encoder":
        return {"input_ids": random.integers(0, config["vocab_size"], (1, 16))}
    if spec.component == "vae_encoder":
        video = latent.video(Grid(spatial=32, temporal=8))
        return {"video": np.tanh(normal(1, 3, video.num_frames, video.height, video.width))}
    channels = config["in_channels"] if spec.component == "latent_upsampler" else config["latent_channels"]
    inputs = {"latents": normal(*latent.array_shape(1, channels))}
    if "timestep" in spec.sample:
        inputs["timestep"] = np.array([0.05], np.float32)
    if spec.component == "vae_decoder":
        levels = tuple(NoiseLevel(scale, maps) for scale, maps in networks.decoder_noise(config).items())
        inputs |= InjectedNoise(levels, second_stream(SEED), inputs["latents"], fresh=False).whole
    return inputs


def reference(checkpoint: str, model: Any, latent: LatentShape, inputs: Feeds) -> Tensor:
    """What diffusers' module makes of the inputs of a graph."""
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if "input_ids" in tensors:
        embeds: Tensor = model(tensors["input_ids"]).last_hidden_state
        return embeds
    if "video" in tensors:
        moments: Tensor = model.encode(tensors["video"]).latent_dist.parameters
        return moments
    if checkpoint == "vae":
        frames: Tensor = model.decode(tensors["latents"], tensors.get("timestep")).sample
        return frames
    if checkpoint == "latent_upsampler":
        larger: Tensor = model(tensors["latents"])
        return larger
    (velocity,) = model(
        **{name: tensor for name, tensor in tensors.items() if not name.startswith(("rope", "stg"))},
        num_frames=latent.frames,
        height=latent.height,
        width=latent.width,
        rope_interpolation_scale=(8 / 25.0, 32, 32),
        return_dict=False,
    )
    made: Tensor = velocity
    return made
