"""The demo model's latent space: principal components of what fills a latent cell.

A cell is what one latent position stands for: 8 frames of 32x32 pixels. Its space is fixed before anything is trained,
so that the encoder, the decoder and the transformer learn on their own and at the same time; a VAE whose halves must
find each other first takes hours more on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

COMPRESSION = (8, 32, 32)  # pixels a latent, in time, height and width
POOL = 2  # the components are found at half the resolution


def cells(clips: torch.Tensor) -> torch.Tensor:
    """(B, 3, 8k+1, 32h, 32w) clips to (B, k+1, h, w, D): each cell's pixels, the first frame repeated 8 times."""
    video = torch.cat([clips[:, :, :1].expand(-1, -1, COMPRESSION[0] - 1, -1, -1), clips], dim=2)
    pooled = torch.nn.functional.avg_pool3d(video, (1, POOL, POOL))
    frames, rows, columns = COMPRESSION[0], COMPRESSION[1] // POOL, COMPRESSION[2] // POOL
    split = pooled.unflatten(4, (-1, columns)).unflatten(3, (-1, rows)).unflatten(2, (-1, frames))
    return split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


@dataclass(frozen=True, slots=True)
class Basis:
    """`mean` (D,) and `directions` (D, C), which scale as well."""

    mean: torch.Tensor
    directions: torch.Tensor

    def encode(self, clips: torch.Tensor) -> torch.Tensor:
        """(B, 3, F, H, W) clips in [-1, 1] to (B, C, f, h, w) latents of mean square 1."""
        return ((cells(clips) - self.mean) @ self.directions).permute(0, 4, 1, 2, 3)

    def save(self, path: Path) -> None:
        torch.save({"mean": self.mean, "directions": self.directions}, path)

    @classmethod
    def load(cls, path: Path) -> Basis:
        return cls(**torch.load(path, weights_only=True))


def fit_basis(found: torch.Tensor, channels: int) -> Basis:
    """The first `channels` principal components of (N, D) cells.

    Each is divided by the square root of its deviation: brightness and colour stay louder than outlines, as in the
    pictures, and yet the outlines are not lost in a flow's noise.
    """
    mean = found.mean(dim=0)
    centred = found - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    deviations = variances.flip(0)[:channels].sqrt()
    directions = vectors.flip(1)[:, :channels] / deviations.sqrt()
    return Basis(mean, directions / deviations.mean().sqrt())
