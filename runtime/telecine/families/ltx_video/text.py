"""What the transformer of LTX-Video attends to, without what weighs nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.overridable import overridable

Array = npt.NDArray[np.float32]
# Text lengths are multiples of this: few shapes for a backend to plan, and whole vectors.
TEXT_STEP = 16


@overridable
def without_padding(embeds: Array, mask: Array) -> tuple[Array, Array]:
    """(B, L, D) embeddings and (B, L) mask without the last columns, which are padding in every row.

    The transformer adds -10,000 to their scores, so that after the softmax they weigh exactly 0: leaving them out
    changes no bit of what is summed, and saves up to L of every query's products. A row that masks everything would
    weigh its pads alike; then all stay.
    """
    length = mask.shape[1]
    if mask.max(axis=1).min() < 1:
        return embeds, mask
    used = int(np.flatnonzero(mask.any(axis=0))[-1]) + 1
    kept = min(length, -(-used // TEXT_STEP) * TEXT_STEP)
    return embeds[:, :kept].copy(), mask[:, :kept].copy()
