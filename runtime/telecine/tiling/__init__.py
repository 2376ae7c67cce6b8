"""A VAE run on parts of a video: within a memory limit, and handed out in pieces along time.

| mode      | tiles                                                                                       |
|-----------|---------------------------------------------------------------------------------------------|
| off       | none: one call of the network                                                               |
| seamless  | context around what is kept of a tile, short fades where two meet                           |
| diffusers | `AutoencoderKLLTXVideo.enable_tiling` with framewise decoding, in its own order of blending |
| auto      | off where the memory limit and the VAE's engine allow it, else seamless                      |
"""

from __future__ import annotations

from telecine.tiling.memory import Footprint
from telecine.tiling.options import TilingOptions
from telecine.tiling.plan import Largest, Plan, least_peak, plan_decoder, plan_encoder
from telecine.tiling.tile import Extent, Network, Tile

__all__ = [
    "Extent",
    "Footprint",
    "Largest",
    "Network",
    "Plan",
    "Tile",
    "TilingOptions",
    "least_peak",
    "plan_decoder",
    "plan_encoder",
]
