"""Train the demo model's latent upsampler: latents of a clip to those of the same clip at twice the size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from demo_model.dataset import Dataset
from demo_model.training import Training

BATCH = 32


def adain(latents: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(B, C, f, h, w) latents with `reference`'s mean and deviation in each channel of each clip.

    The upsampler normalises what it is given, so brightness and colour come back by this step of the pipeline
    (diffusers `LTXLatentUpsamplePipeline.adain_filter_latent`, factor 1), and it is trained with it.
    """
    axes = (2, 3, 4)
    own = latents.std(axes, keepdim=True), latents.mean(axes, keepdim=True)
    given = reference.std(axes, keepdim=True), reference.mean(axes, keepdim=True)
    return (latents - own[1]) / own[0] * given[0] + given[1]


def upsampler_training(upsampler: Any, data: Dataset, *, steps: int, device: torch.device) -> Training:
    """Pairs of the same scenes in two sizes."""
    upsampler.to(device)
    small, large = (part.to(device) for part in data.pairs())

    def loss(step: int) -> torch.Tensor:
        chosen = torch.from_numpy(np.random.default_rng(step).integers(len(small), size=BATCH)).to(device)
        found = adain(upsampler(small[chosen]), small[chosen])
        return torch.nn.functional.mse_loss(found, large[chosen])

    return Training("latent_upsampler", upsampler, loss, steps, 1e-3)
