"""From latents to frames: the VAE's decoder, which may take a timestep, noise in its latents, and maps of noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.families.base import Frames, Models
from telecine.families.ltx_video.host import Host, NoiseLevel
from telecine.families.vae import DecodeSettings, Maps, decoded
from telecine.latents import mix_decode_noise
from telecine.noise import Generator, randn
from telecine.tiling import Tile

Array = npt.NDArray[np.float32]


def decode(
    models: Models,
    host: Host,
    latents: Array,
    settings: DecodeSettings,
    generators: list[Generator],
    stochastic: list[Generator],
) -> Frames:
    """(B, C, F, H, W) latents of the VAE's scale to (B, num_frames, height, width, 3) frames, float32 or uint8.

    The frames are made when they are asked for. `stochastic` are the second streams of the seeds: a decoder that
    injects noise draws its maps from the first one, since all videos of a batch share them.
    """
    feeds: dict[str, Array] = {}
    if host.timestep_conditioning:
        latents = mix_decode_noise(latents, randn(generators, latents.shape), settings.noise_scale)
        feeds["timestep"] = settings.timestep

    def maps() -> Maps:
        return InjectedNoise(host.decoder_noise, stochastic[0], latents, fresh=settings.plan.redraws).of

    return decoded(models, host.grid, latents, feeds, settings, maps)


class InjectedNoise:
    """Noise maps of a decoder with `inject_noise` (LTX-Video 0.9.1), float32, as its inputs `noise_{scale}`.

    Each is `torch.randn((height, width))` at its level, drawn one by one as the decoder runs. The whole picture has
    one set, `whole`, of which tiles take their part; `fresh` draws a set for each tile, as diffusers' tiling does.

    Source: diffusers `LTXVideoResnetBlock3d.forward`.
    """

    def __init__(self, levels: tuple[NoiseLevel, ...], generator: Generator, latents: Array, *, fresh: bool) -> None:
        self._levels, self._generator, self._fresh = levels, generator, fresh
        self.whole = {} if fresh else self._draw(latents.shape[3], latents.shape[4])

    def of(self, tile: Tile) -> dict[str, Array]:
        """(maps, S*h, S*w) by input."""
        rows, columns = tile.rows, tile.columns
        if self._fresh:
            return self._draw(rows.stop - rows.start, columns.stop - columns.start)
        return {
            f"noise_{scale}": self.whole[f"noise_{scale}"][
                :, scale * rows.start : scale * rows.stop, scale * columns.start : scale * columns.stop
            ]
            for scale, _ in self._levels
        }

    def _draw(self, height: int, width: int) -> dict[str, Array]:
        return {
            f"noise_{scale}": np.stack([self._generator.randn((scale * height, scale * width)) for _ in range(maps)])
            for scale, maps in self._levels
        }
