"""The transformer of CogVideoX as a function of latents, timestep and guidance."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from telecine.backends.base import Session
from telecine.families.base import Stage
from telecine.guidance import Pass, StepGuidance

Array = npt.NDArray[np.float32]


class BoundTransformer:
    """The transformer with all that a run does not change bound once: a function of latents, timestep and guidance.

    `text` (passes * B, L, D) is that of `passes`, all that any step of the run needs; `constants` are the inputs that
    tell positions and offset. `image` (B, F, C', H, W) are channels beside the latents', of a model that takes one.
    Returns (passes * B, F, C, H, W) predictions of the step's own passes, in a buffer that the next call overwrites. A
    context manager: leaving it unbinds what the session would otherwise keep alive.
    """

    def __init__(
        self,
        session: Session,
        text: Array,
        constants: Mapping[str, Array],
        latents_shape: tuple[int, ...],
        passes: tuple[Pass, ...],
        image: Array | None = None,
        *,
        stage: Stage,
    ) -> None:
        self._batch, frames, self._channels, *sides = latents_shape
        self._session, self._passes, self._stage = session, passes, stage
        rows = len(passes) * self._batch
        channels = self._channels + (0 if image is None else image.shape[2])
        # B rows a pass. A step's passes are neighbours: it binds a range of rows, and nothing is copied.
        self._rows: dict[str, Array] = {
            "hidden_states": session.empty((rows, frames, channels, *sides), np.float32),
            "encoder_hidden_states": text,
            "timestep": session.empty((rows,), np.float32),
            "prediction": session.empty((rows, frames, self._channels, *sides), np.float32),
        }
        if image is not None:
            self._rows["hidden_states"][:, :, self._channels :] = np.concatenate([image] * len(passes))
        for name, values in constants.items():
            session.bind(name, values)
        self._bind(passes)

    def _bind(self, passes: tuple[Pass, ...]) -> None:
        """Bind the rows of these passes."""
        first = self._passes.index(passes[0]) * self._batch
        rows = slice(first, first + len(passes) * self._batch)
        self._bound = {name: buffer[rows] for name, buffer in self._rows.items()}
        self._bound_passes = passes
        for name, buffer in self._bound.items():
            self._session.bind(name, buffer)

    def __call__(self, latents: Array, timestep: np.float32 | Array, guided: StepGuidance) -> Array:
        if guided.passes != self._bound_passes:
            self._bind(guided.passes)
        for number in range(len(guided.passes)):
            rows = slice(number * self._batch, (number + 1) * self._batch)
            self._bound["hidden_states"][rows, :, : self._channels] = latents
        self._bound["timestep"][:] = timestep
        with self._stage("network"):
            self._session.enqueue()
        return self._bound["prediction"]

    def __enter__(self) -> BoundTransformer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._session.unbind()
