"""Where a run's steps are done: on the GPU that its transformer runs on, or on the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from telecine.denoise import HostSteps, LinearSampler, Steps
from telecine.families.base import Models, Stage
from telecine.families.bound import BoundTransformer, Transformer
from telecine.families.device_steps import DeviceSteps
from telecine.guidance import Guidance, StepGuidance


@contextmanager
def open_steps(
    models: Models,
    transformer: Transformer,
    latents: npt.NDArray[np.float32],
    *,
    sampler: LinearSampler,
    guidance: Guidance[StepGuidance],
    stage: Stage,
) -> Iterator[Steps[npt.NDArray[np.float32]]]:
    """The steps of a denoising from (B, ...) latents; what they bind is unbound at the end."""
    # Both sessions are of one backend; beside engines, a graph without one runs on the host.
    stepper = models.helper("denoise_step") if transformer.session.workspace is not None else None
    if stepper is not None and stepper.workspace is not None:
        with DeviceSteps(transformer, stepper, latents, sampler=sampler, guidance=guidance, stage=stage) as steps:
            yield steps
    else:
        with BoundTransformer(transformer, stage=stage) as network:
            yield HostSteps(network, latents, sampler=sampler, guidance=guidance)
