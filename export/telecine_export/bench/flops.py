"""Floating-point operations of a denoising step, counted by torch from the transformer's shapes; nothing is run."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from telecine.shapes import LatentShape
from telecine_export.family import family_of
from telecine_export.source import Source


def step_flops(source: Source, latent: LatentShape, *, batch: int, text_length: int) -> int:
    """Of these latents and (batch, text_length, D) texts, products and convolutions, as diffusers runs them.

    Raises:
        SourceError: a family that telecine does not export.
    """
    step_call = family_of(source).step_call
    with torch.device("meta"):
        model, inputs = step_call(source.config("transformer"), latent, batch=batch, text_length=text_length)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(**inputs)
    return counter.get_total_flops()
