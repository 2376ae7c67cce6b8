"""What a VAE of LTX takes while it runs, measured without its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def widest_activations(
    model: Any, convolution: type[nn.Module], *, latent_channels: int, ratios: tuple[int, int]
) -> dict[str, float]:
    """Values of the largest activation of each half, per pixel of the video: what tiles are sized by.

    `model` is on the meta device; its activations are those that a `convolution` takes or makes. `ratios` are the
    (temporal, spatial) pixels per latent.
    """
    temporal, spatial = ratios
    video = torch.empty(1, 3, 8 * temporal + 1, 2 * spatial, 2 * spatial, device="meta")
    latents = torch.empty(1, latent_channels, 9, 2, 2, device="meta")
    sizes: list[int] = []
    for module in model.modules():
        if isinstance(module, convolution):
            module.register_forward_hook(lambda _, inputs, output: sizes.extend((inputs[0].numel(), output.numel())))
    widest = {}
    runs = {
        "vae_encoder": lambda: model.encoder(video),
        "vae_decoder": lambda: model.decoder(latents, torch.empty(1, device="meta")),
    }
    with torch.no_grad():
        for name, run in runs.items():
            sizes.clear()
            run()
            widest[name] = max(sizes) / video[0, 0].numel()
    return widest
