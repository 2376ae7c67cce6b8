"""Growth with tokens: a step's seconds and the peak memory, each size in a fresh process."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from telecine.bench.fresh import measure_fresh
from telecine.bench.settings import Settings
from telecine.bench.spread import fitted_exponent
from telecine.errors import BackendError
from telecine.shapes import Grid, LatentShape, VideoShape

logger = logging.getLogger(__name__)

# (frames, rows, columns) of 256 to 16,384 tokens of a video, each size twice the last.
SIZES = ((4, 8, 8), (8, 8, 8), (4, 16, 16), (8, 16, 16), (16, 16, 16), (8, 32, 32), (16, 32, 32))
LARGE = 2048  # tokens from which attention outweighs what grows with the tokens alone


def sweep(
    processes: Mapping[str, tuple[str, str]],
    settings: Settings,
    grid: Grid,
    *,
    most_tokens: int,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """By competitor: tokens, seconds of a step and peak bytes, and the exponents that they grow with, above LARGE.

    `processes` has the module and the path of each competitor's fresh process. The passes of guidance are off: a step
    is one call of the network on one video. A competitor that fails at a size, out of memory, ends there.
    """
    points: dict[str, list[dict[str, float]]] = {name: [] for name in processes}
    running = dict(processes)
    for size in SIZES:
        tokens = math.prod(size)
        if tokens > most_tokens:
            break
        video = _video(size, grid)
        sized = dataclasses.replace(
            settings,
            height=video.height,
            width=video.width,
            num_frames=video.num_frames,
            num_inference_steps=2,
            guidance_scale=1.0,
            output_type="latent",
        )
        for name, (module, path) in list(running.items()):
            try:
                told = measure_fresh(module, path, sized)
            except BackendError as error:
                logger.warning("%s stops below %d tokens: %s", name, tokens, error)
                del running[name]
                continue
            progress(f"{name}, {tokens} tokens: {told['step']:.3f} s a step")
            points[name].append({"tokens": tokens, "step": told["step"], "peak_memory": told["peak_memory"]})
    return {name: {"points": each, "exponents": _exponents(each)} for name, each in points.items()}


def _video(size: tuple[int, int, int], grid: Grid) -> VideoShape:
    frames, rows, columns = size
    latent = LatentShape(frames=frames * grid.patch_t, height=rows * grid.patch, width=columns * grid.patch)
    return latent.video(grid)


def _exponents(points: list[dict[str, float]]) -> dict[str, float | None]:
    large = [point for point in points if point["tokens"] >= LARGE]
    tokens = [point["tokens"] for point in large]
    return {name: fitted_exponent(tokens, [point[name] for point in large]) for name in ("step", "peak_memory")}
