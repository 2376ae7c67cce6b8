"""How far a bundle's values are from torch's, and how far they may be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.errors import SourceError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """The largest and (optionally) mean absolute difference allowed, in units of max(1, rms of torch's values).

    `peak` is the PSNR's; None takes the range of torch's values. Where torch's values have a standard deviation below
    `spread`, the comparison proves little, and the report says so.
    """

    largest: float
    mean: float | None = None
    peak: float | None = None
    spread: float = 0.0


# Of fp32 components. In brackets: what the tiny models of the tests measure, on their own scale of about 1.
TOLERANCES: Mapping[str, Tolerance] = {
    "tokenizer": Tolerance(largest=0),  # ids are integers
    # One pass through a network: float32 sums in another order. A wrong operator is off by 1e-3 and more.
    "text_encoder": Tolerance(largest=1e-5),  # [2e-6]
    "connectors": Tolerance(largest=1e-5),  # [3e-6]
    "transformer": Tolerance(largest=1e-5),  # [3e-6]
    # Convolutions sum 27 times the channels, in an order that each library chooses. 3e-5 of [-1, 1] is a 250th of a
    # step of 8 bits.
    "vae_encoder": Tolerance(largest=3e-5),  # [2e-6]
    "vae_decoder": Tolerance(largest=3e-5),  # [8e-6]
    "latent_upsampler": Tolerance(largest=3e-5),  # convolutions again [3e-6]
    "audio_vae_decoder": Tolerance(largest=3e-5),  # and again [7e-6 of a spectrogram of 2]
    "vocoder": Tolerance(largest=3e-5),  # of [-1, 1]: one step of 16 bits [2e-6]
    # Host math as graphs: the same float32 sums in another order, over values of up to 20. Bytes are equal.
    "denoise_step": Tolerance(largest=2e-5),  # [3e-6]
    "decoder_latents": Tolerance(largest=1e-5),  # [1e-6]
    "uint8_frames": Tolerance(largest=0),
    "prompt_embeds": Tolerance(largest=1e-5),  # as the text encoder [4e-6]
    "noise": Tolerance(largest=0),  # the generator is torch's, bit for bit
    "schedule": Tolerance(largest=0),  # so are the sigmas: a timestep's last bit would be magnified by the embedding
    # Noise beside or over what the VAE's encoder made, which is sampled: as the encoder. [3e-6]
    "start": Tolerance(largest=3e-5),
    "positions": Tolerance(largest=1e-6),  # as rope [6e-8]
    "rope": Tolerance(largest=1e-6),  # host math: torch's float32 cosines against correctly rounded ones [6e-8]
    # A pass's 1e-5, times 5 by guidance at 3 (3 conditional, -2 not), and every step inherits the last one's.
    "latents": Tolerance(largest=1e-4),  # [6e-6]
    "sound_latents": Tolerance(largest=2e-4),  # LTX-2 guides a sound at 7
    "decode_input": Tolerance(largest=1e-4),  # the latents, denormalised and mixed with noise [6e-6]
    # What must hold of a whole run: a grey clip proves nothing.
    "frames": Tolerance(largest=2e-3, mean=2e-5, peak=1.0, spread=0.05),  # [3e-6, 2e-7]
    "audio": Tolerance(largest=2e-3, mean=2e-5, peak=2.0, spread=0.05),  # samples in [-1, 1]
}


# PSNR in dB that stages of lower precision must reach, over the range of torch's values at fp32; frames over 1. Random
# inputs are harder on a network than a run: outliers that training took out of the way. In brackets: the lowest that
# any stage of the demo model measures.
PSNR_FLOORS: Mapping[str, float] = {
    "fp16": 50.0,  # [78]
    "bf16": 30.0,  # [57]
    "fp8": 20.0,  # [37]
}
# What the host computes, whatever the networks' precision.
HOST_STAGES = ("tokenizer", "noise", "schedule", "rope")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """One case of a stage: what the bundle made, and what torch makes of the same inputs, of these shapes by name."""

    case: str
    shapes: Mapping[str, tuple[int, ...]]
    got: Array
    expected: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseReport:
    """One comparison. A figure that is not finite is None: NaN anywhere, or the PSNR of equal arrays.

    Either `tolerance` (largest absolute difference) or `psnr_floor` (of lower precisions) is its limit.
    """

    case: str
    passed: bool
    shapes: dict[str, tuple[int, ...]]
    max_abs: float | None = None
    mean_abs: float | None = None
    cosine: float | None = None
    psnr: float | None = None
    tolerance: float | None = None
    psnr_floor: float | None = None
    spread: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """A stage: the figures of its worst case, and every case.

    `tolerance` is the largest absolute difference allowed, in the values' own units; where values come through a
    component below fp32 it is None, and `psnr_floor` is the limit. `seconds` of the whole run are
    its first stage's; the others have None. `detail` says what diverged first, why the stage could not run, or what
    weakens its proof.
    """

    name: str
    passed: bool
    shapes: tuple[str, ...] = ()
    max_abs: float | None = None
    mean_abs: float | None = None
    cosine: float | None = None
    psnr: float | None = None
    tolerance: float | None = None
    psnr_floor: float | None = None
    seconds: float | None = None
    detail: str | None = None
    cases: tuple[CaseReport, ...] = ()


def compare(stage: str, pair: Pair, precision: str = "fp32") -> CaseReport:
    """Compare two arrays of one shape, in float64, by the stage's tolerance or the precision's PSNR.

    Raises:
        SourceError: torch's own values are not finite, so that nothing can be compared with them.
    """
    tolerance = TOLERANCES[stage]
    got, expected = (array.astype(np.float64).ravel() for array in (pair.got, pair.expected))
    if not np.isfinite(expected).all():
        raise SourceError(
            f"torch computes NaN or infinity at stage {stage}, {pair.case}",
            expected="finite values at fp32",
            fix="The source's weights are damaged: download it again.",
        )
    scale = max(1.0, float(_rms(expected)))
    floor = None if stage in HOST_STAGES else PSNR_FLOORS.get(precision)
    limit = tolerance.largest * scale
    limits = {"tolerance": limit} if floor is None else {"psnr_floor": floor}
    shapes = dict(pair.shapes)
    if pair.got.shape != pair.expected.shape:
        mismatch = f"shape {pair.got.shape}, torch's is {pair.expected.shape}"
        return CaseReport(case=pair.case, passed=False, shapes=shapes, reason=mismatch, **limits)
    # NaN of the bundle, the PSNR of equal arrays and the cosine of zeros are answers too: None in the report.
    with np.errstate(all="ignore"):
        difference = np.abs(got - expected)
        largest, mean = difference.max(), difference.mean()
        cosine = got @ expected / np.sqrt((got @ got) * (expected @ expected))
        psnr = 20 * np.log10(np.float64(tolerance.peak or np.ptp(expected)) / _rms(difference))
    if floor is None:
        reason = _excess(largest, mean, limit, None if tolerance.mean is None else tolerance.mean * scale)
    else:
        reason = None if largest == 0 or psnr >= floor else f"PSNR {psnr:.1f} dB is below {floor:g}"
    return CaseReport(
        case=pair.case,
        passed=reason is None,
        shapes=shapes,
        max_abs=_finite(largest),
        mean_abs=_finite(mean),
        cosine=_finite(cosine),
        psnr=_finite(psnr),
        **limits,
        spread=float(expected.std()),
        reason=reason,
    )


def stage_report(name: str, pairs: Sequence[Pair], *, seconds: float | None, precision: str = "fp32") -> StageReport:
    """Compare every pair of a stage.

    Raises:
        SourceError: see `compare`.
    """
    cases = tuple(compare(name, pair, precision) for pair in pairs)
    worst = max(cases, key=_badness)
    detail = next((f"{case.case}: {case.reason}" for case in cases if not case.passed), None)
    if detail is None and worst.spread is not None and worst.spread < TOLERANCES[name].spread:
        detail = f"torch's values hardly vary (standard deviation {worst.spread:.2g}): agreement proves little"
    shapes = (", ".join(f"{name} {shape}" for name, shape in case.shapes.items()) for case in cases)
    return StageReport(
        name=name,
        passed=all(case.passed for case in cases),
        shapes=tuple(dict.fromkeys(shapes)),
        max_abs=worst.max_abs,
        mean_abs=worst.mean_abs,
        cosine=worst.cosine,
        psnr=worst.psnr,
        tolerance=worst.tolerance,
        psnr_floor=worst.psnr_floor,
        seconds=seconds,
        detail=detail,
        cases=cases,
    )


def _badness(case: CaseReport) -> tuple[bool, float]:
    """Failed cases are worse than passed ones, then by how much of the tolerance they use."""
    largest = math.inf if case.max_abs is None else case.max_abs
    if case.psnr_floor is not None:
        return not case.passed, -math.inf if case.psnr is None and case.passed else -(case.psnr or -math.inf)
    return not case.passed, largest / case.tolerance if case.tolerance else largest


def _excess(largest: float, mean: float, limit: float, mean_limit: float | None) -> str | None:
    """What is past its limit, in words; None where nothing is."""
    if not math.isfinite(largest):
        return "NaN or infinity, where torch's values are finite"
    if largest > limit:
        return f"max abs {largest:.3g} is above {limit:.3g}"
    if mean_limit is not None and mean > mean_limit:
        return f"mean abs {mean:.3g} is above {mean_limit:.3g}"
    return None


def _rms(values: npt.NDArray[np.float64]) -> np.float64:
    return np.sqrt(np.mean(np.square(values)))


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
