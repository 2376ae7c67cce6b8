"""The transformer of LTX-Video as a function of latents, timestep and guidance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.backends.base import Session
from telecine.families.ltx_video.host import Host
from telecine.guidance import Pass, StepGuidance
from telecine.rope import RopeTables

Array = npt.NDArray[np.float32]


class BoundTransformer:
    """The transformer with all that a run does not change bound once: a function of latents, timesteps and guidance.

    `text` (passes * B, L, D) and `mask` (passes * B, L) are those of `passes`, all that any step of the run needs. One
    timestep is told, or one a token: `timestep_tokens` is 1 or T. Returns (passes * B, T, C) velocities of the step's
    own passes, in a buffer that the next call overwrites. A context manager: leaving it unbinds what the session would
    otherwise keep alive.
    """

    def __init__(
        self,
        session: Session,
        host: Host,
        text: Array,
        mask: Array,
        rope: RopeTables,
        latents_shape: tuple[int, ...],
        passes: tuple[Pass, ...],
        timestep_tokens: int = 1,
    ) -> None:
        self._batch, tokens, channels = latents_shape
        rows = len(passes) * self._batch
        self._session, self._blocks, self._passes = session, host.transformer_blocks, passes
        # B rows a pass. A step's passes are neighbours: it binds a range of rows, and nothing is copied.
        self._rows: dict[str, Array] = {
            "hidden_states": session.empty((rows, tokens, channels), np.float32),
            "encoder_hidden_states": text,
            "encoder_attention_mask": mask,
            "timestep": session.empty((rows, timestep_tokens), np.float32),
            "velocity": session.empty((rows, tokens, channels), np.float32),
        }
        for name, table in {"rope_cos": rope.cos, "rope_sin": rope.sin, "rope_index": rope.index}.items():
            session.bind(name, table)
        self._bind(passes)

    def _bind(self, passes: tuple[Pass, ...]) -> None:
        """Bind the rows of these passes."""
        first = self._passes.index(passes[0]) * self._batch
        rows = slice(first, first + len(passes) * self._batch)
        self._bound = {name: buffer[rows] for name, buffer in self._rows.items()}
        self._bound_passes = passes
        self._stg_mode = self._session.empty((self._blocks, len(passes) * self._batch), np.int32)
        for name, buffer in (self._bound | {"stg_mode": self._stg_mode}).items():
            self._session.bind(name, buffer)

    def __call__(self, latents: Array, timestep: np.float32 | Array, guided: StepGuidance) -> Array:
        if guided.passes != self._bound_passes:
            self._bind(guided.passes)
        self._bound["hidden_states"].reshape(-1, *latents.shape)[:] = latents
        self._bound["timestep"][:] = timestep
        self._stg_mode[:] = guided.stg_modes(self._blocks, self._batch)
        self._session.enqueue()
        return self._bound["velocity"]

    def __enter__(self) -> BoundTransformer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._session.unbind()
