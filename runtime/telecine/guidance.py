"""Guidance: which passes of the network a step needs, and how their predictions become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from telecine.overridable import overridable

Array = npt.NDArray[np.float32]
PIECE = 1 << 15  # values that are widened to float64 at a time: they stay in a cache
DOT = 1 << 13  # values of a product that OpenBLAS keeps on one thread (it uses more above 10,000)
Pass = Literal["negative", "positive", "perturbed", "isolated"]

# The order of a batch's passes. The perturbed one attends to the positive prompt, and so does the isolated one, in
# which video and sound do not see each other.
PASSES: tuple[Pass, ...] = ("negative", "positive", "perturbed", "isolated")
# What a perturbed block leaves out, by the values of the transformer graph's `stg_mode` input, where 0 is nothing:
# the mixing of attention (the values themselves go on), attention altogether (its input goes on), or the whole block.
STG_MODES = {"attention_values": 1, "attention_skip": 2, "transformer_block": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGuidance:
    """One step's guidance: a `scale` above 1 needs the negative prompt, an `stg_scale` above 0 the perturbed blocks.

    Alone, classifier-free guidance is diffusers' and so is its rescaling, bit for bit. With spatio-temporal guidance
    the order is Lightricks': classifier-free, plus stg_scale (c - p), then the rescaling against c, with or without
    a negative prompt. There a rescaling of 1 means none; here 0 does, as in diffusers, and 1 means all of it.

    Source: diffusers `LTXPipeline.__call__`; Lightricks/LTX-Video `LTXVideoPipeline.__call__`.
    """

    scale: float = 1.0
    rescale: float = 0.0
    stg_scale: float = 0.0
    stg_mode: str = "attention_values"
    stg_blocks: tuple[int, ...] = ()
    cfg_star: bool = False

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What the network runs on each video, in the order of the batch: neighbours in `PASSES`, for every step."""
        before: tuple[Pass, ...] = ("negative",) if self.scale > 1 else ()
        after: tuple[Pass, ...] = ("perturbed",) if self.stg_scale > 0 else ()
        return (*before, "positive", *after)

    def stg_modes(self, blocks: int, batch: int) -> npt.NDArray[np.int32]:
        """(blocks, passes * B) modes of the transformer's blocks: zeros but for the perturbed pass's rows."""
        modes = np.zeros((blocks, len(self.passes), batch), np.int32)
        if "perturbed" in self.passes:
            modes[list(self.stg_blocks), -1] = STG_MODES[self.stg_mode]
        return modes.reshape(blocks, len(self.passes) * batch)

    def weights(self) -> Array:
        """(3, passes) float32: what the graph `denoise_step` combines predictions p by, as `combine` does.

        c + sum of weights (c - p), where c is the positive one. The first row has the weights, the second is 1 at the
        positive pass, the third 1 at a pass that is first projected onto the positive one.
        """
        by_pass = {"negative": (self.scale - 1, 0, self.cfg_star), "positive": (0, 1, 0)}
        rows = [by_pass.get(each, (self.stg_scale, 0, 0)) for each in self.passes]
        return np.array(rows, np.float32).T.copy()

    @property
    def rescaled(self) -> float:
        """How much of the rescaling `combine` does: none of a single pass."""
        return self.rescale if len(self.passes) > 1 else 0.0

    def combine(self, velocities: Array) -> Array:
        """(passes * B, T, C) velocities, in the passes' order → (B, T, C) in their place: they are overwritten.

        New arrays of this size would cost as much as the arithmetic: their pages come one by one, in every step.
        """
        passes = self.passes
        if len(passes) == 1:
            return velocities
        batch = len(velocities) // len(passes)
        given = {each: velocities[row * batch : (row + 1) * batch] for row, each in enumerate(passes)}
        guided = cond = given["positive"]
        if "negative" in given:
            uncond = given["negative"]
            uncond = project(uncond, cond, out=uncond) if self.cfg_star else uncond
            guided = classifier_free(uncond, cond, self.scale, out=uncond)
        if "perturbed" in given:
            guided = spatio_temporal(guided, cond, given["perturbed"], self.stg_scale, out=given["perturbed"])
        return rescale(guided, cond, self.rescale, out=guided) if self.rescale > 0 else guided


class HasPasses(Protocol):
    """Any family's guidance of one step."""

    @property
    def passes(self) -> tuple[Pass, ...]: ...


Step = TypeVar("Step", bound=HasPasses)


@dataclass(frozen=True, slots=True)
class Guidance(Generic[Step]):
    """The guidance of a run, step by step."""

    steps: tuple[Step, ...]

    def at(self, step: int) -> Step:
        return self.steps[step]

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What any of the steps needs, in the order of `PASSES`. A run may have no step."""
        return tuple(each for each in PASSES if each == "positive" or any(each in step.passes for step in self.steps))


def classifier_free(uncond: Array, cond: Array, scale: float, *, out: Array | None = None) -> Array:
    """Extrapolate from two predictions (B, ...), float32: u + scale (c - u), bit for bit torch's.

    `out` may be `uncond`.

    Source: Ho and Salimans 2022; diffusers `LTXPipeline.__call__`.
    """
    assert uncond.shape == cond.shape
    difference = np.subtract(cond, uncond, dtype=np.float32)
    difference *= np.float32(scale)
    return np.add(uncond, difference, out=out)


def project(uncond: Array, cond: Array, *, out: Array | None = None) -> Array:
    """Scale each video of `uncond` (B, ...) to its nearest point to `cond`: u <c, u> / (|u|² + 1e-8), float32.

    `out` may be `uncond`.

    Source: Fan et al. 2025 (CFG-Zero*), the optimized scale; Lightricks/LTX-Video `cfg_star_rescale`.
    """
    c, u = (values.reshape(len(values), -1) for values in (cond, uncond))
    dot = np.einsum("bn,bn->b", c, u, dtype=np.float64)
    factor = dot / (np.einsum("bn,bn->b", u, u, dtype=np.float64) + 1e-8)
    return np.multiply(uncond, _per_video(factor, uncond.ndim), out=out, dtype=np.float32)


def spatio_temporal(guided: Array, cond: Array, perturbed: Array, scale: float, *, out: Array | None = None) -> Array:
    """Push a guided prediction (B, ...) away from the perturbed network's: g + scale (c - p), float32.

    `out` may be `perturbed`.

    Source: Hyung et al. 2024 (STG); Lightricks/LTX-Video `LTXVideoPipeline.__call__`.
    """
    out = np.subtract(cond, perturbed, out=out, dtype=np.float32)
    out *= np.float32(scale)
    out += guided
    return out


def rescale(guided: Array, cond: Array, phi: float, *, out: Array | None = None) -> Array:
    """Pull the spread of a guided prediction (B, ...) back to that of `cond`, by a factor phi in 0..1.

    `out` may be `guided`. The standard deviations are unbiased, over all axes but the batch.

    Source: Lin et al. 2023, section 3.4; diffusers `rescale_noise_cfg`.
    """
    ratio = deviation(cond) / deviation(guided)
    # phi * (g * ratio) + (1 - phi) * g, as one multiplication of the large array.
    factor = phi * ratio + (1 - phi)
    return np.multiply(guided, _per_video(factor, guided.ndim), out=out, dtype=np.float32)


@overridable
def deviation(values: Array) -> npt.NDArray[np.float64]:
    """(B,) unbiased standard deviations of (B, ...), accumulated in float64.

    A piece at a time, in cache: np.std would write two float64 arrays of the whole size, and take longer.
    """
    rows = values.reshape(len(values), -1)
    buffer = np.empty(min(PIECE, rows.shape[1]), np.float64)
    variances = np.empty(len(rows), np.float64)
    for index, row in enumerate(rows):
        total = squares = 0.0
        for start in range(0, row.size, PIECE):
            part = row[start : start + PIECE]
            piece = buffer[: part.size]
            np.copyto(piece, part)
            piece -= row[0]  # near the mean: what is squared stays small, and equal values deviate by exactly 0
            total += float(piece.sum())
            squares += _squares(piece)
        variances[index] = (squares - total * total / row.size) / (row.size - 1)
    return np.sqrt(np.maximum(variances, 0))


def _squares(values: npt.NDArray[np.float64]) -> float:
    """The sum of the squares of (N,) values, in products that BLAS does not wake its threads for.

    On a busy machine it waits milliseconds for them.
    """
    parts = (values[start : start + DOT] for start in range(0, values.size, DOT))
    return sum(float(part @ part) for part in parts)


def _per_video(factors: npt.NDArray[np.float64], axes: int) -> Array:
    """(B,) factors as float32 (B, 1, ...), for an array of so many axes."""
    return factors.astype(np.float32).reshape(-1, *[1] * (axes - 1))
