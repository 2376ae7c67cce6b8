"""How far a clip is from a reference: PSNR, SSIM, motion, and pictures that are broken whatever the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Clip = npt.NDArray[np.float32]

# Wang et al. 2004 (IEEE TIP 13:4): K1, K2 and the side of the window, with the uniform window of scikit-image's
# default in place of their Gaussian.
K1, K2, WINDOW = 0.01, 0.03, 7
# A frame of which every value lies below this is black.
BLACK = 1 / 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A clip next to its reference. PSNR in dB, infinite for equal clips, NaN for one with NaN or infinity in it.

    `temporal_psnr` is that of the differences between neighbouring frames, which flicker and broken motion lower;
    infinite for one frame. `black_frames` counts those that are black where the reference's are not.
    """

    psnr: float
    ssim: float
    temporal_psnr: float
    finite: bool
    black_frames: int

    @property
    def broken(self) -> bool:
        """Whether there is nothing to measure: NaN, or pictures gone."""
        return not self.finite or self.black_frames > 0


def compare_clips(clip: Clip, reference: Clip) -> Comparison:
    """(F, H, W, C) clips in [0, 1] → how far the first is from the second."""
    clip, reference = clip.astype(np.float64), reference.astype(np.float64)
    motion, motion_of_reference = np.diff(clip, axis=0), np.diff(reference, axis=0)
    black = (clip.max(axis=(1, 2, 3)) < BLACK) & (reference.max(axis=(1, 2, 3)) >= BLACK)
    return Comparison(
        psnr=psnr(clip, reference),
        ssim=float(np.mean([ssim(frame, other) for frame, other in zip(clip, reference, strict=True)])),
        temporal_psnr=psnr(motion, motion_of_reference) if len(motion) else float("inf"),
        finite=bool(np.isfinite(clip).all()),
        black_frames=int(black.sum()),
    )


def psnr(values: npt.NDArray[np.floating], reference: npt.NDArray[np.floating], *, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB of arrays of one shape."""
    error = float(np.mean(np.square(np.subtract(values, reference, dtype=np.float64))))
    if not np.isfinite(error):
        return float("nan")
    return float("inf") if error == 0 else 10 * float(np.log10(peak**2 / error))


def ssim(image: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> float:
    """Mean structural similarity of (H, W, C) images in [0, 1], over windows of 7 x 7 and channels."""
    count = WINDOW**2
    mean_x, mean_y = _window_sums(image) / count, _window_sums(reference) / count
    # Sample variances, as the paper has them.
    var_x = (_window_sums(image * image) / count - mean_x**2) * count / (count - 1)
    var_y = (_window_sums(reference * reference) / count - mean_y**2) * count / (count - 1)
    covariance = (_window_sums(image * reference) / count - mean_x * mean_y) * count / (count - 1)
    c1, c2 = K1**2, K2**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))))


def _window_sums(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(H, W, C) → (H - 6, W - 6, C) sums over every window, by differences of running sums."""
    padded = np.pad(image, ((1, 0), (1, 0), (0, 0))).cumsum(axis=0).cumsum(axis=1)
    k = WINDOW
    return padded[k:, k:] - padded[:-k, k:] - padded[k:, :-k] + padded[:-k, :-k]
