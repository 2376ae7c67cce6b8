"""How much memory running the VAE on a tile takes, predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from telecine.shapes import Grid

FLOAT = 4
# The largest activation, this many times over: what ONNX Runtime's CPU provider holds at its peak, from the second call
# on (its arena keeps what the first one left). Resident growth measured over sizes, for one large activation of 2 to 8
# values a pixel: 6.6 to 7.1 times for decoders, 8.3 for encoders.
COPIES = 8.5
# Of a pixel of a piece: a float video, frames as floats, frames as bytes; of one that is put together from tiles, a
# product with weights too.
DECODED_BYTES = 3 * (FLOAT + FLOAT + 1)
WEIGHTED_BYTES = 3 * FLOAT


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of a network: `widest`, values of its largest activation per pixel of the video; the host's bytes beside it,
    per pixel of a piece, and what tiles add to them; and the latents that it takes at the least along height and
    width: one that pads by reflection takes no single one."""

    widest: float
    host_bytes: int
    tiled_bytes: int
    least_side: int = 1

    @classmethod
    def decoder(cls, widest: float, least_side: int = 1) -> Footprint:
        return cls(widest, DECODED_BYTES, WEIGHTED_BYTES, least_side)

    @classmethod
    def encoder(cls, widest: float, least_side: int = 1) -> Footprint:
        """Its pieces are latents, which are small."""
        return cls(widest, 0, 0, least_side)

    def peak(
        self, tile: tuple[int, int, int], whole: tuple[int, int, int], grid: Grid, *, videos: int, at_once: int
    ) -> int:
        """Bytes for tiles of a whole, both (frames, height, width) in latents, `at_once` of the videos a call."""
        pixels = grid.temporal * grid.spatial**2  # of a latent
        network = at_once * math.prod(tile) * pixels * self.widest * FLOAT * COPIES
        piece = videos * tile[0] * whole[1] * whole[2] * pixels
        return math.ceil(network + piece * (self.host_bytes + (self.tiled_bytes if tile != whole else 0)))
