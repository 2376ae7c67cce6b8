"""A sound as a picture of its spectrum over time, which the quality gate compares as it compares frames.

Samples are no measure: two sounds that nobody tells apart may differ in the phase of every tone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.picture_quality import Clip

WINDOW, HOP = 512, 128  # samples
# Of full scale; what is quieter counts as silence, as it does for the ear beside anything louder.
RANGE = 80.0  # decibels


def sound_picture(samples: npt.NDArray[np.floating]) -> Clip:
    """(channels, samples) in [-1, 1] → one frame (1, times, frequencies, channels) of decibels, in [0, 1].

    1 is a tone of full scale, 0 is `RANGE` below or less: a sound that is gone is a black frame. NaN stays NaN. Shorter
    sounds than a window are filled with silence.
    """
    filled = np.pad(samples.astype(np.float64), ((0, 0), (0, max(0, WINDOW + 6 * HOP - samples.shape[1]))))
    windows = np.lib.stride_tricks.sliding_window_view(filled, WINDOW, axis=1)[:, ::HOP]
    weights = np.hanning(WINDOW)
    magnitudes = np.abs(np.fft.rfft(windows * weights, axis=-1)) / (weights.sum() / 2)
    decibels = 20 * np.log10(np.maximum(magnitudes, 10 ** (-RANGE / 20)))
    picture: Clip = (1 + np.minimum(decibels, 0) / RANGE).transpose(1, 2, 0)[np.newaxis].astype(np.float32)
    return picture
