"""Sinusoids with the frequencies that torch computed."""

from __future__ import annotations

import math

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

FREQUENCIES = "frequencies"


class TorchFrequencies(nn.Module):
    """(K,) frequencies that torch computed on a CPU: of no value while a graph is traced, then a constant in it.

    Folded into the graph by another library, a frequency's last bit differs: at timestep 1000 that is 6e-5 radians.
    """

    frequencies: Tensor

    def __init__(self, computed: Tensor) -> None:
        super().__init__()
        self.computed = [computed]  # in a list, which torch leaves where it is
        self.register_buffer(FREQUENCIES, torch.empty_like(computed, device="meta"), persistent=False)


class TorchTimesteps(TorchFrequencies):
    """Stands in for diffusers' Timesteps: (N,) timesteps → (N, channels) sinusoids."""

    def __init__(self, original: Timesteps) -> None:
        half = original.num_channels // 2
        with torch.device("cpu"):
            exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32)
            super().__init__(torch.exp(exponents / (half - original.downscale_freq_shift)))
        self.flip, self.scale = original.flip_sin_to_cos, original.scale

    def forward(self, timesteps: Tensor) -> Tensor:
        angles = self.scale * (timesteps[:, None].float() * self.frequencies[None])
        waves = [torch.sin(angles), torch.cos(angles)]
        return torch.cat(waves[::-1] if self.flip else waves, dim=-1)


def patch_timesteps(model: nn.Module) -> None:
    """Give every sinusoidal timestep projection the frequencies that torch computes on a CPU."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Timesteps):
                setattr(module, name, TorchTimesteps(child))


def computed_constants(model: nn.Module) -> dict[str, Tensor]:
    """Values of the buffers that patches put in place of what the network computes, by their names."""
    return {
        f"{name}.{FREQUENCIES}": module.computed[0]
        for name, module in model.named_modules()
        if isinstance(module, TorchFrequencies)
    }
