"""What a family's precision is tried on: runs of its real pipeline, small enough for a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from telecine.picture_quality import Clip
from telecine.pipeline import Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Runs of a family. `request` is the quality gate's; `clips` makes it and whatever reaches the other components.

    Calibration runs `calibration`, a request that ends at the latents, with every prompt at every size (height, width,
    frames) and seed.
    """

    request: Mapping[str, Any]
    clips: Callable[[Pipeline, Mapping[str, Any]], list[Clip]]
    calibration: Mapping[str, Any]
    prompts: Sequence[str]
    sizes: Sequence[tuple[int, int, int]]
    seeds: Sequence[int]
