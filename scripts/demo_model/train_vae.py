"""Train the halves of the demo model's VAE, each on its own: the latent space between them is fixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from demo_model.dataset import Dataset, to_clips
from demo_model.training import Training, contact_sheet

OUTLINE_WEIGHT, OUTLINE_REACH = 8.0, 3  # pixels
OBJECT_WEIGHT = 4.0  # the object covers a tenth of the picture
MAX_NOISE = 0.2  # of the decoder's timestep
CLEAN_SHARE = 0.3
PIXELS = 4 * 17 * 96 * 96  # a step, about


class Clips:
    """Batches of clips, their objects' masks and their latents, on a device."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.device, self.basis, self.sizes = device, data.basis(), data.sizes
        self.kept = {size: data.pictures(size) for size in data.sizes}

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 3, F, H, W) clips, (B, 1, F, H, W) masks and (B, C, f, h, w) latents of a seeded choice."""
        rng = np.random.default_rng(step)
        counts = np.array([size.pictures for size in self.sizes])
        size = self.sizes[rng.choice(len(self.sizes), p=counts / counts.sum())]
        count = min(size.pictures, max(1, PIXELS // size.pixels))
        chosen = np.sort(rng.choice(size.pictures, count, replace=False))
        pixels, masks = (part[chosen] for part in self.kept[size])
        clips = to_clips(pixels)
        weights = torch.from_numpy(masks.astype(np.float32))[:, None] / 255
        return clips.to(self.device), weights.to(self.device), self.basis.encode(clips).to(self.device)


def outlines(masks: torch.Tensor) -> torch.Tensor:
    """(B, 1, F, H, W) masks to where they change within OUTLINE_REACH pixels."""
    kernel, padding = (1, 2 * OUTLINE_REACH + 1, 2 * OUTLINE_REACH + 1), (0, OUTLINE_REACH, OUTLINE_REACH)
    widest, least = (torch.nn.functional.max_pool3d(sign * masks, kernel, 1, padding) for sign in (1, -1))
    return widest + least


def decoder_training(
    vae: Any, data: Dataset, *, steps: int, device: torch.device, name: str, rate: float, outline_weight: float
) -> Training:
    """Latents of the fixed space, with some noise, to the clips that they are of."""
    clips_of = Clips(data, device)
    vae.decoder.to(device, memory_format=torch.channels_last_3d)

    def loss(step: int) -> torch.Tensor:
        clips, masks, latents = clips_of.batch(step)
        chance = torch.rand(2, len(clips), device=device)
        sigma = MAX_NOISE * chance[0] * (chance[1] > CLEAN_SHARE)
        scale = sigma[:, None, None, None, None]
        noised = (1 - scale) * latents + scale * torch.randn_like(latents)
        with torch.autocast(device.type, torch.bfloat16):
            error = vae.decoder(noised, sigma).float() - clips
        weights = 1 + OBJECT_WEIGHT * masks + outline_weight * outlines(masks)
        return (weights / weights.mean() * (error.abs() + error**2)).mean()

    @torch.no_grad()
    def sample(path: Path) -> None:
        """Clips and, beside each, what the decoder makes of its latents."""
        clips = to_clips(data.pictures(data.sizes[0])[0][:8])
        timestep = torch.full((len(clips),), 0.05, device=device)
        decoded = vae.decoder(clips_of.basis.encode(clips).to(device), timestep).cpu()
        rows = torch.stack([clips, decoded], dim=1).flatten(0, 1)
        contact_sheet(rows.permute(0, 2, 3, 4, 1).float().numpy(), path)

    return Training(name, vae.decoder, loss, steps, rate, sample)


def encoder_training(vae: Any, data: Dataset, *, steps: int, device: torch.device) -> Training:
    """Clips to their latents; the variance stays as little as it starts."""
    clips_of = Clips(data, device)
    vae.encoder.to(device, memory_format=torch.channels_last_3d)
    channels = clips_of.basis.directions.shape[1]
    with torch.no_grad():
        # The last of the encoder's channels is the logarithm of the variance.
        vae.encoder.conv_out.conv.weight[channels:].zero_()
        vae.encoder.conv_out.conv.bias[channels:].fill_(-12.0)

    def loss(step: int) -> torch.Tensor:
        clips, _, latents = clips_of.batch(step)
        with torch.autocast(device.type, torch.bfloat16):
            found = vae.encoder(clips)[:, :channels].float()
        return torch.nn.functional.mse_loss(found, latents)

    return Training("encoder", vae.encoder, loss, steps, 1e-3)
