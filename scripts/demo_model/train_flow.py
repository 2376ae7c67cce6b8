"""Train the demo model's transformer by flow matching on the fixed latents."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from demo_model.cells import COMPRESSION
from demo_model.dataset import Dataset, Size, to_clips
from demo_model.networks import SCHEDULER
from demo_model.train_text import LENGTH, embed, said
from demo_model.training import Training

BATCH_TOKENS = 64 * 27
PROMPT_DROPOUT = 0.1
CAPTIONS = 2  # of each clip
FRAME_RATE = 25.0
# Shares of the steps: in LTXConditionPipeline's coordinates, the others in LTXPipeline's; of those whose first latent
# frame is given, clean and at timestep 0, and of these the ones where all but the last are; and of the steps in
# LTXConditionPipeline's coordinates those with a later picture given, as more tokens in front.
CONDITION_SHARE, FIRST_SHARE, LEADING_SHARE, KEYFRAME_SHARE = 0.5, 0.25, 0.25, 0.2
KEYFRAMES = (8, 16)  # pixel frames

Grid = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Shard:
    """Clips of one size: `latents` (N, T, C), packed; `texts`, CAPTIONS of each; `grid` (f, h, w).

    `keyframes` (M, K, h*w, C): the pictures at KEYFRAMES of the first M clips, where there are that many frames.
    """

    latents: torch.Tensor
    texts: list[tuple[torch.Tensor, ...]]
    grid: Grid
    keyframes: torch.Tensor


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, f, h, w) to (B, f*h*w, C)."""
    return latents.flatten(2).transpose(1, 2).contiguous()


@torch.no_grad()
def load_shard(data: Dataset, size: Size, text_encoder: Any, tokenizer: Any, device: torch.device) -> Shard:
    """The latents of `size`, and the embeddings (L, D) of their captions."""
    latents = data.latents(size)
    rng = np.random.default_rng([1, size.frames, size.height, size.width])
    prompts = [said(scene, rng)[0] for scene in size.scenes(size.latents) for _ in range(CAPTIONS)]
    texts: list[torch.Tensor] = []
    for i in range(0, len(prompts), 100):
        states, mask = embed(text_encoder, tokenizer, prompts[i : i + 100], LENGTH, device)
        texts += [state[: int(kept.sum())].clone() for state, kept in zip(states, mask, strict=True)]
    grouped = list(zip(*(texts[i::CAPTIONS] for i in range(CAPTIONS)), strict=True))
    grid = (latents.shape[2], latents.shape[3], latents.shape[4])
    return Shard(pack(latents).to(device), grouped, grid, _keyframes(data, size).to(device))


def _keyframes(data: Dataset, size: Size) -> torch.Tensor:
    """The pictures at KEYFRAMES of `size`'s clips, each encoded as a clip of one frame."""
    if size.frames <= max(KEYFRAMES):
        return torch.zeros(0)
    clips, basis = data.pictures(size)[0], data.basis()
    frames = [torch.cat([pack(basis.encode(to_clips(clip[None, i : i + 1]))) for i in KEYFRAMES]) for clip in clips]
    return torch.stack(frames)


def coordinates(grid: Grid, *, condition: bool) -> torch.Tensor:
    """(3, T) seconds, rows and columns in pixels: `LTXConditionPipeline`'s, or `LTXPipeline`'s."""
    axes = [torch.arange(count, dtype=torch.float32) * ratio for count, ratio in zip(grid, COMPRESSION, strict=True)]
    if condition:
        axes[0] = (axes[0] + 1 - COMPRESSION[0]).clamp(min=0)
    axes[0] = axes[0] / FRAME_RATE
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)


@dataclass(frozen=True, slots=True)
class Task:
    """What a step is given: `clean` (B, T, C), which tokens are `given` (T,), `coords` (3, T), and the texts."""

    clean: torch.Tensor
    given: torch.Tensor
    coords: torch.Tensor
    texts: list[torch.Tensor]


def pick_task(shard: Shard, rng: np.random.Generator, unsaid: torch.Tensor) -> Task:
    """Clips of one shard, with their captions or none, and what of them is known."""
    condition = rng.random() < CONDITION_SHARE
    first, leading, later = rng.random(3) < (FIRST_SHARE, LEADING_SHARE, KEYFRAME_SHARE)
    later = condition and later and shard.keyframes.numel() > 0
    count = BATCH_TOKENS // shard.latents.shape[1]
    chosen = rng.integers(len(shard.keyframes) if later else len(shard.texts), size=count)
    said_of = [shard.texts[i][rng.integers(CAPTIONS)] for i in chosen]
    texts = [unsaid if rng.random() < PROMPT_DROPOUT else text for text in said_of]

    frames, height, width = shard.grid
    clean = shard.latents[torch.from_numpy(chosen).to(shard.latents.device)]
    coords = coordinates(shard.grid, condition=condition)
    given = torch.zeros(clean.shape[1], dtype=torch.bool)
    given[: height * width * ((frames - 1 if leading else 1) if first else 0)] = True
    if later:
        which = int(rng.integers(len(KEYFRAMES)))
        picture = shard.keyframes[torch.from_numpy(chosen).to(clean.device), which]
        place = coordinates((1, height, width), condition=True)
        place[0] += KEYFRAMES[which] / FRAME_RATE
        clean, coords = torch.cat([picture, clean], dim=1), torch.cat([place, coords], dim=1)
        given = torch.cat([torch.ones(height * width, dtype=torch.bool), given])
    return Task(clean, given.to(clean.device), coords.to(clean.device), texts)


def flow_loss(transformer: Any, shards: list[Shard], unsaid: torch.Tensor) -> Callable[[int], torch.Tensor]:
    """The velocity's mean squared error, of the tokens that are not given."""
    counts = np.array([len(shard.texts) for shard in shards])
    shift = math.exp(SCHEDULER["base_shift"])

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng(step)
        task = pick_task(shards[rng.choice(len(shards), p=counts / counts.sum())], rng, unsaid)
        text = torch.nn.utils.rnn.pad_sequence(task.texts, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t[:, 0]) for t in task.texts], batch_first=True)
        count = len(task.clean)
        noise = torch.randn_like(task.clean)
        uniform = torch.rand(count, 1, device=noise.device)
        sigma = torch.where(task.given, 0, shift * uniform / (1 + (shift - 1) * uniform))
        mixed = (1 - sigma[..., None]) * task.clean + sigma[..., None] * noise
        # Fused attention's backward is slow on a CPU at so few tokens.
        with torch.autocast(noise.device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            found = transformer(
                mixed, text, 1000 * sigma, mask, video_coords=task.coords.expand(count, -1, -1), return_dict=False
            )[0]
        error = found.float() - (noise - task.clean)
        return (error[:, ~task.given] ** 2).mean()

    return loss


def transformer_training(
    transformer: Any, text_encoder: Any, tokenizer: Any, data: Dataset, *, steps: int, device: torch.device
) -> Training:
    """Velocities of clips between noise and latent: with captions and without, with pictures given and without."""
    transformer.to(device)
    text_encoder.to(device).requires_grad_(False)
    shards = [load_shard(data, size, text_encoder, tokenizer, device) for size in data.sizes]
    unsaid = embed(text_encoder, tokenizer, [""], LENGTH, device)[0][0]
    return Training("transformer", transformer, flow_loss(transformer, shards, unsaid), steps, 1e-3)
