"""LTX-2's transformers in their real configurations: what `real_sizes.py` exports, feeds them, and torch's answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from telecine.families.ltx2.host import parse_rope
from telecine.families.ltx2.modalities import Told
from telecine.families.ltx2.positions import rope_inputs
from telecine.families.ltx2.transformer import timestep_inputs
from telecine.shapes import LatentShape
from telecine_export.families.ltx2 import transformer
from telecine_export.families.ltx2.releases import TRANSFORMER_23, TRANSFORMERS
from telecine_export.graphs import GraphSpec

Array = npt.NDArray[Any]
Config = Mapping[str, Any]
Feeds = dict[str, Array]

# 240 tokens of a video and 11 of its sound.
TOKENS, AUDIO_TOKENS, TEXT_LENGTH, FRAME_RATE = LatentShape(frames=3, height=8, width=10), 11, 16, 24.0
TOLD = Told(
    timesteps=np.array([700.0], np.float32), timestep=np.float32(700.0), audio_timestep=np.float32(650.0),
    sigma=np.float32(0.7), audio_sigma=np.float32(0.65),
)  # fmt: skip


def settings() -> dict[str, tuple[str, Config, Any, LatentShape, str]]:
    """By name: the checkpoint, its configuration, what makes its graphs, what they are run on, and the precision.

    Whole ones are exported at fp16: 38 GB. One with 2 of 48 blocks, which are all alike, runs where memory is less.
    """
    return {
        **{
            f"transformer LTX-{release}": ("transformer", config, transformer_graphs, TOKENS, "fp16")
            for release, config in TRANSFORMERS.items()
        },
        "transformer LTX-2.3 2 blocks": (
            "transformer", {**TRANSFORMER_23, "num_layers": 2}, transformer_graphs, TOKENS, "fp32",
        ),
    }  # fmt: skip


def transformer_graphs(config: Config) -> list[GraphSpec]:
    return [transformer.graph(config)]


def feeds(config: Config, latent: LatentShape, random: np.random.Generator) -> Feeds:
    """Random inputs of one video, whose passes are neither perturbed nor isolated."""
    text, audio_text = transformer.text_widths(config)
    widths = {
        "hidden_states": (latent.tokens, config["in_channels"]),
        "audio_hidden_states": (AUDIO_TOKENS, config["audio_in_channels"]),
        "encoder_hidden_states": (TEXT_LENGTH, text),
        "audio_encoder_hidden_states": (TEXT_LENGTH, audio_text),
    }
    given: Feeds = {name: random.standard_normal((1, *shape), dtype=np.float32) for name, shape in widths.items()}
    given |= timestep_inputs(TOLD, 1, use_cross_timestep=True)
    given |= rope_inputs(parse_rope(transformer.rope(config)), latent, AUDIO_TOKENS, FRAME_RATE)
    given["modality_mask"] = np.ones(1, np.float32)
    given["perturbation_mask"] = np.ones((config["num_layers"], 1), np.float32)
    return {name: array for name, array in given.items() if name in transformer.graph(config).sample}


def reference(model: Any, latent: LatentShape, inputs: Feeds) -> list[Tensor]:
    """What diffusers' module makes of them: the velocities of the video and of its sound."""
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items() if name.endswith("hidden_states")}
    velocities = model(
        **tensors,
        timestep=torch.tensor([float(TOLD.timestep)]),
        audio_timestep=torch.tensor([float(TOLD.audio_timestep)]),
        sigma=torch.tensor([float(TOLD.timestep)]),
        audio_sigma=torch.tensor([float(TOLD.audio_timestep)]),
        num_frames=latent.frames,
        height=latent.height,
        width=latent.width,
        fps=FRAME_RATE,
        audio_num_frames=AUDIO_TOKENS,
        use_cross_timestep=True,
        return_dict=False,
    )
    return list(velocities)
