"""What a family's precision is tried on: runs of its real pipeline, small enough for a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from telecine.picture_quality import Clip
from telecine.pipeline import Pipeline

# As people write them: short and long, of things, people and places.
CALIBRATION_PROMPTS = (
    "A woman with long brown hair walks over the wet street at night, neon lights behind her.",
    "a red ball rolls slowly to the left over a green floor",
    "An aerial view of waves that break on dark rocks; the camera pans to the horizon at sunset.",
    "close-up of an old sailor's face, soft light, shallow depth of field",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Runs of a family. `request` is the quality gate's; `clips` makes it and whatever reaches the other components.
    A family with sound has `sound_picture` of it among them.

    `calibration` makes requests that end at the latents, one a size, of the manifest's host configuration; each runs
    with every prompt and seed.
    """

    request: Mapping[str, Any]
    clips: Callable[[Pipeline, Mapping[str, Any]], list[Clip]]
    calibration: Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]]
    prompts: Sequence[str]
    seeds: Sequence[int]
