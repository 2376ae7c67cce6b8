"""A denoising step as one linear form, which is what the weightless graph `denoise_step` computes.

Every sampler's step adds up what it starts from, the guided prediction, noise and one array more, each by a weight for
all tokens or for each. On the host the samplers' own steps run; `apply` is here to hold the forms against them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

# The order of the graph's `coefficients`.
COEFFICIENTS = ("sample", "prediction", "noise", "anchor", "denoised_sample", "denoised_prediction")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearStep:
    """latents' = sample · x + prediction · v + noise · ε + anchor · a, for latents x and a guided prediction v.

    Weights are numbers, or (T,) with one a token. `denoised_sample` and `denoised_prediction` say in the same way what
    clean latents the prediction means. `draw` draws ε, of the latents' shape; it must be called where it is there, as
    it moves the generators on. What `a` is, the sampler says.
    """

    sample: npt.ArrayLike = 1.0
    prediction: npt.ArrayLike = 0.0
    noise: npt.ArrayLike = 0.0
    anchor: npt.ArrayLike = 0.0
    denoised_sample: npt.ArrayLike = 1.0
    denoised_prediction: npt.ArrayLike = 0.0
    draw: Callable[[], Array] | None = None

    def coefficients(self, tokens: int = 1) -> Array:
        """(6, tokens, 1) float32: the weights in the order of `COEFFICIENTS`, where `tokens` is 1 or T."""
        rows = [np.broadcast_to(np.asarray(getattr(self, name), np.float32), tokens) for name in COEFFICIENTS]
        return np.stack(rows)[..., np.newaxis]

    def apply(self, latents: Array, guided: Array, noise: Array | None, anchor: Array | None) -> tuple[Array, Array]:
        """(B, T, C) latents and guided prediction → the latents after the step, and the clean ones; float32.

        Weights that are one for all take arrays of any shape.
        """
        weights = self.coefficients(max(np.size(getattr(self, name)) for name in COEFFICIENTS))
        a, b, c, d, e, f = weights if weights.shape[1] > 1 else weights[:, 0, 0]
        moved = a * latents + b * guided
        for weight, array in ((c, noise), (d, anchor)):
            if array is not None:
                moved = moved + weight * array
        return moved, e * latents + f * guided
