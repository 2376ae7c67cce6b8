"""The requests of requests.cpp, in Python: together they set every parameter of `generate`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import telecine


def pattern(*shape: int) -> NDArray[np.uint8]:
    return (np.arange(np.prod(shape)) * 37 % 251).astype(np.uint8).reshape(shape)


def fractions(*shape: int) -> NDArray[np.float32]:
    return ((np.arange(np.prod(shape)) * 37 % 251).astype(np.float32) / np.float32(250)).reshape(shape)


EMBEDS, MASK = fractions(2, 16, 96), np.ones((1, 16), np.float32)
SMALL = {
    "prompt": "a red ball rolls to the left over a dark green floor",
    "height": 64,
    "width": 64,
    "num_frames": 9,
    "num_inference_steps": 3,
    "output_type": "uint8",
}

REQUESTS: dict[str, dict[str, Any]] = {
    "guided": {
        "prompt": ["a red ball rolls to the left", "ein blaues Quadrat, größer"],
        "negative_prompt": "white",
        "height": 64,
        "width": 96,
        "num_frames": 17,
        "frame_rate": 24.5,
        "num_inference_steps": 3,
        "guidance_scale": [3.0, 2.5, 2.0],
        "guidance_rescale": 0.5,
        "cfg_star": True,
        "stg_scale": 0.5,
        "stg_mode": "attention_skip",
        "stg_blocks": [[1, 2], [2], [3]],
        "num_videos_per_prompt": 2,
        "seed": [1, 2, 3, -4],
        "decode_timestep": 0.05,
        "decode_noise_scale": [0.02, 0.025, 0.03, 0.035],
        "output_type": "np",
        "max_sequence_length": 32,
        "tiling": "seamless",
        "tile_size": 64,
        "tile_stride": 32,
        "tile_frames": 16,
        "tile_frame_stride": 8,
    },
    "conditioned": {
        "prompt_embeds": EMBEDS[:1],
        "prompt_attention_mask": MASK,
        "negative_prompt_embeds": EMBEDS[1:],
        "negative_prompt_attention_mask": MASK,
        "conditions": [
            telecine.Condition(image=pattern(40, 64, 3)[:, :32], frame_index=16, strength=0.75),
            telecine.Condition(video=fractions(9, 64, 64, 3)),
        ],
        "image_cond_noise_scale": 0.1,
        "height": 64,
        "width": 64,
        "num_frames": 17,
        "timesteps": [1000.0, 700.0, 300.0],
        "guidance_sigmas": [1.0, 0.5],
        "guidance_scale": [4.0, 2.0],
        "memory_limit": "1GiB",
        "seed": 7,
    },
    "changed": {
        **SMALL,
        "pipeline": "LTXConditionPipeline",
        "latents": fractions(1, 48, 2, 2, 2),
        "denoise_strength": 0.6,
        "num_inference_steps": 5,
        "memory_limit": 1 << 30,
        "output_type": "latent",
        "seed": 3,
    },
    "in_two_stages": {
        "preset": "recommended",
        "prompt": "a red ball",
        "image": pattern(64, 64, 3),
        "height": 128,
        "width": 128,
        "num_frames": 9,
        "num_inference_steps": 3,
        "output_type": "uint8",
        "seed": 1,
        "second_stage": {
            "downscale_factor": 0.5,
            "adain_factor": 0.5,
            "tone_map_compression_ratio": 0.25,
            "denoise_strength": 0.5,
            "num_inference_steps": 4,
            "guidance_scale": 1.5,
            "guidance_rescale": 0.25,
            "cfg_star": True,
            "stg_scale": 0.25,
            "stg_mode": "attention_skip",
            "stg_blocks": [2],
            "image_cond_noise_scale": 0.05,
        },
    },
    "with_second_timesteps": {
        **SMALL,
        "height": 128,
        "width": 128,
        "seed": 2,
        "second_stage": {
            "downscale_factor": 0.5,
            "denoise_strength": 0.999,
            "timesteps": [900.0, 500.0],
            "guidance_sigmas": [1.0, 0.6],
            "guidance_scale": [3.0, 2.0],
        },
    },
}
