"""The guidance of each step, from what a request says for all of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.errors import RequestError
from telecine.families.ltx_video.host import Host
from telecine.guidance import Guidance, StepGuidance
from telecine.per_step import listed, per_step
from telecine.request import Request


def request_guidance(request: Request, sigmas: npt.NDArray[np.float32], host: Host) -> Guidance:
    """The guidance of a run whose steps begin at (N,) sigmas.

    Raises:
        RequestError: a list of another length than the steps or ranges, a block that the model does not have, or a
            step of spatio-temporal guidance without blocks.
    """
    ends = listed(request.guidance_sigmas) or []
    scale = per_step("guidance_scale", request.guidance_scale, sigmas, ends)
    rescale = per_step("guidance_rescale", request.guidance_rescale, sigmas, ends)
    stg_scale = per_step("stg_scale", request.stg_scale, sigmas, ends)
    blocks = listed(request.stg_blocks) or []
    by_step = bool(blocks) and listed(blocks[0]) is not None  # lists in a list
    stg_blocks = per_step("stg_blocks", blocks, sigmas, ends) if by_step else [blocks] * len(sigmas)
    steps = tuple(
        StepGuidance(
            scale=float(scale[step]),
            rescale=float(rescale[step]),
            stg_scale=float(stg_scale[step]),
            stg_mode=request.stg_mode,
            stg_blocks=tuple(listed(stg_blocks[step]) or ()),
            cfg_star=request.cfg_star,
        )
        for step in range(len(sigmas))
    )
    for index, step in enumerate(steps):
        _check_blocks(index, step, len(steps), host.transformer_blocks)
    return Guidance(steps)


def _check_blocks(index: int, step: StepGuidance, steps: int, blocks: int) -> None:
    unknown = sorted({block for block in step.stg_blocks if not 0 <= block < blocks})
    if unknown:
        raise RequestError(
            f"stg_blocks has {', '.join(map(str, unknown))}",
            expected=f"indexes from 0 to {blocks - 1}: the model has {blocks} blocks",
            fix="Count blocks from 0, forwards.",
        )
    if step.stg_scale > 0 and not step.stg_blocks:
        raise RequestError(
            f"step {index + 1} of {steps} has stg_scale {step.stg_scale:g} and no stg_blocks",
            expected="the blocks that spatio-temporal guidance perturbs",
            fix="Pass stg_blocks=[19] (2B) or [28] (13B), or an stg_scale of 0 for that step.",
        )
