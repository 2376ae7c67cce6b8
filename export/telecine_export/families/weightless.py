"""Graphs without weights: host math of every family as a GPU runs it, where the arrays lie. NumPy is their reference.

`denoise_step` is `guidance.combine` and a sampler's step (`linear_step`), `decoder_latents` a family's `denormalize`,
`uint8_frames` is `pixels`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from telecine.linear_step import COEFFICIENTS
from telecine_export.graphs import GraphSpec
from telecine_export.precision.policy import Policy

DENOISE_STEP, DECODER_LATENTS, UINT8_FRAMES = "denoise_step", "decoder_latents", "uint8_frames"

WEIGHTLESS = (DENOISE_STEP, DECODER_LATENTS, UINT8_FRAMES)

_ONLY_FP32 = Policy(only_fp32="it has no weights to save, and small errors of a step add up over a run")
POLICIES = dict.fromkeys(WEIGHTLESS, _ONLY_FP32)


class DenoiseStepGraph(nn.Module):
    """(P, B, T, C) predictions of the passes of guidance → (B, T, C) latents after a step, and the clean ones.

    `guidance` (3, P) is `StepGuidance.weights()`, `rescale` (1,) its phi; `coefficients` (6, 1 or T, 1) are
    `LinearStep`'s. Products and sums one by one: matrix products would be rounded to TF32 where that is allowed.
    """

    def forward(
        self,
        predictions: Tensor,
        guidance: Tensor,
        rescale: Tensor,
        sample: Tensor,
        noise: Tensor,
        anchor: Tensor,
        coefficients: Tensor,
    ) -> tuple[Tensor, Tensor]:
        weights, positive, projected = (guidance[row].reshape(-1, 1, 1, 1) for row in range(3))
        cond = (predictions * positive).sum(0)
        uncond = (predictions * projected).sum(0)
        # NumPy adds 1e-8, which a simplification takes for 0: below it both give next to nothing.
        nearest = _sums(cond * uncond) / _sums(uncond * uncond).clamp(min=1e-8)
        predictions = predictions * (1 + projected * (nearest - 1))
        guided = cond + (weights * (cond - predictions)).sum(0)
        # Both deviations divide by the same count, which their ratio does not see.
        ratio = torch.sqrt(_squared_deviations(cond) / _squared_deviations(guided))
        phi = rescale.reshape(1, 1, 1)
        guided = guided * torch.where(phi > 0, phi * ratio + (1 - phi), 1.0)
        a, b, c, d, e, f = (coefficients[row] for row in range(len(COEFFICIENTS)))
        return a * sample + b * guided + c * noise + d * anchor, e * sample + f * guided


def _sums(values: Tensor) -> Tensor:
    """(B, 1, 1) sums of (B, T, C)."""
    return values.sum((1, 2), keepdim=True)


def _squared_deviations(values: Tensor) -> Tensor:
    """(B, 1, 1) sums of squared distances of (B, T, C) from their mean."""
    distances = values - values.mean((1, 2), keepdim=True)
    return _sums(distances * distances)


def denoise_step() -> GraphSpec:
    """For latents of other axes, such as (B, F, C, H, W): bind them as (B, 1, F·C·H·W), with coefficients for all."""
    passes, batch, tokens, channels = 5, 2, 7, 6
    latents = torch.zeros(batch, tokens, channels)
    named = {0: "batch", 1: "tokens", 2: "channels"}
    return GraphSpec(
        component=DENOISE_STEP,
        build=lambda dtype: DenoiseStepGraph(),
        sample={
            "predictions": torch.zeros(passes, batch, tokens, channels),
            "guidance": torch.zeros(3, passes),
            "rescale": torch.zeros(1),
            "sample": latents,
            "noise": latents.clone(),
            "anchor": latents.clone(),
            "coefficients": torch.zeros(len(COEFFICIENTS), tokens, 1),
        },
        axes={
            "predictions": {0: "passes", 1: "batch", 2: "tokens", 3: "channels"},
            "guidance": {1: "passes"},
            "rescale": {},
            "sample": named,
            "noise": named,
            "anchor": named,
            "coefficients": {1: "tokens"},
        },
        untied=(("coefficients", 1, "coefficient_tokens"),),
        output="latents",
        output_shape=("batch", "tokens", "channels"),
        states={"denoised": ("batch", "tokens", "channels")},
        checkpoint=None,
    )


class DecoderLatentsGraph(nn.Module):
    """(B, ...) latents of the transformer, axes in its `order` → (B, C, F, H, W) latents for the VAE's decoder.

    z · scale + shift, a value a channel; then, where there is noise, (1 - s) z + s noise with (B,) s.
    """

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.order = tuple(order)

    def forward(
        self,
        latents: Tensor,
        scale: Tensor,
        shift: Tensor,
        noise: Tensor | None = None,
        noise_scale: Tensor | None = None,
    ) -> Tensor:
        scale, shift = (each.reshape(1, -1, 1, 1, 1) for each in (scale, shift))
        latents = latents.permute(self.order) * scale + shift
        if noise is None or noise_scale is None:
            return latents
        share = noise_scale.reshape(-1, 1, 1, 1, 1)
        return latents * (1 - share) + noise * share


def decoder_latents(*, channels: int, order: Sequence[int], noise: bool) -> GraphSpec:
    """`order`: where (B, C, F, H, W) lie among the axes of the transformer's latents."""
    named: tuple[tuple[int, str | int], ...] = (
        (2, "batch"), (channels, channels), (3, "latent_frames"), (4, "latent_height"), (5, "latent_width"),
    )  # fmt: skip
    given = [named[order.index(axis)] for axis in range(len(named))]
    sample = {
        "latents": torch.zeros([size for size, _ in given]),
        "scale": torch.zeros(channels),
        "shift": torch.zeros(channels),
    }
    axes: dict[str, dict[int, str]] = {"latents": _symbols(given), "scale": {}, "shift": {}}
    if noise:
        sample |= {"noise": torch.zeros([size for size, _ in named]), "noise_scale": torch.zeros(named[0][0])}
        axes |= {"noise": _symbols(named), "noise_scale": {0: "batch"}}
    return GraphSpec(
        component=DECODER_LATENTS,
        build=lambda dtype: DecoderLatentsGraph(order),
        sample=sample,
        axes=axes,
        output="decoder_latents",
        output_shape=tuple(name for _, name in named),
        checkpoint=None,
    )


def _symbols(axes: Sequence[tuple[int, str | int]]) -> dict[int, str]:
    return {axis: name for axis, (_, name) in enumerate(axes) if isinstance(name, str)}


class Uint8FramesGraph(nn.Module):
    """(B, 3, F, H, W) video in [-1, 1] → (B, F, H, W, 3) uint8 frames, in the order of operations of `pixels`."""

    def forward(self, video: Tensor) -> Tensor:
        unit = (video * 0.5 + 0.5).clamp(0, 1)
        return torch.round(unit * 255).permute(0, 2, 3, 4, 1).to(torch.uint8)


def uint8_frames() -> GraphSpec:
    axes = {0: "batch", 2: "num_frames", 3: "height", 4: "width"}
    return GraphSpec(
        component=UINT8_FRAMES,
        build=lambda dtype: Uint8FramesGraph(),
        sample={"video": torch.zeros(2, 3, 3, 4, 5)},
        axes={"video": axes},
        output="frames",
        output_shape=("batch", "num_frames", "height", "width", 3),
        checkpoint=None,
    )
