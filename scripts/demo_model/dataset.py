"""The clips that the demo model is trained on: drawn once, kept as bytes, never of a combination that is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from demo_model.cells import Basis, cells, fit_basis
from demo_model.data import Scene, combinations, render, sample_scene
from demo_model.networks import LATENT_CHANNELS


@dataclass(frozen=True, slots=True)
class Size:
    """Clips of one size: `frames`, `height`, `width` in pixels, `scale` times the scene's own."""

    frames: int
    height: int
    width: int
    scale: int = 1
    pictures: int = 0  # clips whose pixels are kept, for the VAE
    latents: int = 0  # clips whose latents are kept, for the transformer

    @property
    def name(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    @property
    def pixels(self) -> int:
        return self.frames * self.height * self.width

    def clip(self, scene: Scene) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """(F, H, W, 3) pixels and the object's (F, H, W) mask, as bytes."""
        drawn = render(scene, frames=self.frames, height=self.height, width=self.width, scale=self.scale)
        pixels, mask = (drawn[0] + 1) * 127.5, drawn[1][..., 0] * 255
        return np.rint(pixels).astype(np.uint8), np.rint(mask).astype(np.uint8)

    def scenes(self, count: int) -> list[Scene]:
        """The first `count` scenes of this size, the same in every process."""
        rng = np.random.default_rng([self.frames, self.height, self.width])
        choices = combinations(held_out=False)
        return [sample_scene(rng, choices) for _ in range(count)]


# Squares mostly; other shapes and lengths so that borders and positions mean what they should; and, last, the same
# scenes at twice the size, for what follows an upsampler.
SIZES = (
    Size(17, 96, 96, pictures=2400, latents=14000),
    Size(17, 96, 128, pictures=300, latents=1600),
    Size(17, 128, 96, pictures=300, latents=1600),
    Size(25, 96, 96, pictures=300, latents=1600),
    Size(9, 96, 96, pictures=300, latents=800),
    Size(17, 192, 192, scale=2, pictures=240, latents=1600),
)


class Dataset:
    """Clips of several sizes in a folder; `draw` writes what is missing."""

    def __init__(self, folder: Path, sizes: Sequence[Size] = SIZES) -> None:
        self.folder, self.sizes = folder, tuple(sizes)

    def draw(self) -> None:
        """Write every size's clips and masks, and the basis of the latent space, fitted on a quarter of them."""
        for size in self.sizes:
            if not self._file("clips", size).exists():
                drawn = [size.clip(scene) for scene in size.scenes(size.pictures)]
                np.save(self._file("masks", size), np.stack([mask for _, mask in drawn]))
                np.save(self._file("clips", size), np.stack([pixels for pixels, _ in drawn]))
        if not (self.folder / "basis.pt").exists():
            shares = [self.pictures(size)[0][: max(1, size.pictures // 4)] for size in self.sizes]
            found = torch.cat([cells(to_clips(share)).flatten(0, -2) for share in shares])
            fit_basis(found, LATENT_CHANNELS).save(self.folder / "basis.pt")

    def basis(self) -> Basis:
        return Basis.load(self.folder / "basis.pt")

    def pictures(self, size: Size) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """The (N, F, H, W, 3) clips and (N, F, H, W) masks of `size`, mapped from the folder."""
        clips, masks = (np.load(self._file(part, size), mmap_mode="r") for part in ("clips", "masks"))
        return clips, masks

    def latents(self, size: Size) -> torch.Tensor:
        """(N, C, f, h, w) latents of `size`'s scenes."""
        return self._latents(f"latents-{size.name}.pt", size, size.scenes(size.latents))

    def pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C, f, h, w) latents of the last size's scenes as small as they are told, and (N, C, f, sh, sw)."""
        large = self.sizes[-1]
        small = replace(large, height=large.height // large.scale, width=large.width // large.scale, scale=1)
        return self._latents("latents-small.pt", small, large.scenes(large.latents)), self.latents(large)

    def _latents(self, name: str, size: Size, scenes: list[Scene]) -> torch.Tensor:
        if not (self.folder / name).exists():
            basis = self.basis()
            torch.save(torch.cat([basis.encode(to_clips(size.clip(s)[0][None])) for s in scenes]), self.folder / name)
        latents: torch.Tensor = torch.load(self.folder / name, weights_only=True)
        return latents

    def _file(self, part: str, size: Size) -> Path:
        return self.folder / f"{part}-{size.name}.npy"


def to_clips(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """(B, F, H, W, 3) bytes to (B, 3, F, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels.transpose(0, 4, 1, 2, 3).astype(np.float32)) / 127.5 - 1
