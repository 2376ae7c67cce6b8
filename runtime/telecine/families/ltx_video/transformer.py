"""The transformer of LTX-Video as a function of latents, timestep and guidance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.backends.base import Session
from telecine.families.base import Stage
from telecine.families.ltx_video.host import Host
from telecine.guidance import Pass, StepGuidance
from telecine.rope import RopeTables

Array = npt.NDArray[np.float32]
# Tokens of a pass from which passes run one after the other, where a batch is no quicker: measured on a CPU, a batch of
# two is 12 % quicker at 27 tokens, 3 % slower at 1,024 and equal at 6,144, where it takes twice the activations.
ONE_BY_ONE = 1024


class BoundTransformer:
    """The transformer with all that a run does not change bound once: a function of latents, timesteps and guidance.

    `text` (passes * B, L, D) and `mask` (passes * B, L) are those of `passes`, all that any step of the run needs. One
    timestep is told, or one a token: `timestep_tokens` is 1 or T. Returns (passes * B, T, C) velocities of the step's
    own passes, in a buffer that the next call overwrites. Passes run one after the other where memory asks for
    it (`one_by_one`), and large ones where the session says that a batch does not pay. A context manager: leaving it
    unbinds what the session would otherwise keep alive.
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
        *,
        one_by_one: bool = False,
        stage: Stage,
    ) -> None:
        self._batch, tokens, channels = latents_shape
        rows = len(passes) * self._batch
        self._session, self._blocks, self._passes, self._stage = session, host.transformer_blocks, passes, stage
        together = session.batch_pays or self._batch * tokens < ONE_BY_ONE
        self._at_once = len(passes) if together and not one_by_one else 1
        # B rows a pass. A step's passes are neighbours: it binds a range of rows, and nothing is copied.
        self._rows: dict[str, Array] = {
            "hidden_states": session.empty((rows, tokens, channels), np.float32),
            "encoder_hidden_states": text,
            "encoder_attention_mask": mask,
            "timestep": session.empty((rows, timestep_tokens), np.float32),
            "velocity": session.empty((rows, tokens, channels), np.float32),
        }
        self._bound_passes: tuple[Pass, ...] = ()
        self._guided: StepGuidance | None = None
        for name, table in {"rope_cos": rope.cos, "rope_sin": rope.sin, "rope_index": rope.index}.items():
            session.bind(name, table)

    def _guide(self, guided: StepGuidance) -> None:
        """What one step's guidance asks for, which is often the next one's too."""
        self._guided, passes = guided, guided.passes
        rows = self._rows_of(passes)
        tokens, channels = self._rows["hidden_states"].shape[1:]
        self._hidden_states = self._rows["hidden_states"][rows].reshape(len(passes), -1, tokens, channels)
        self._timestep, self._velocity = self._rows["timestep"][rows], self._rows["velocity"][rows]
        modes = guided.stg_modes(self._blocks, self._batch).reshape(self._blocks, len(passes), self._batch)
        calls = (slice(first, first + self._at_once) for first in range(0, len(passes), self._at_once))
        self._calls = [(passes[call], modes[:, call].reshape(self._blocks, -1)) for call in calls]

    def _rows_of(self, passes: tuple[Pass, ...]) -> slice:
        first = self._passes.index(passes[0]) * self._batch
        return slice(first, first + len(passes) * self._batch)

    def _bind(self, passes: tuple[Pass, ...]) -> None:
        """Bind the rows of these passes."""
        rows = self._rows_of(passes)
        self._bound_passes = passes
        self._stg_mode = self._session.empty((self._blocks, len(passes) * self._batch), np.int32)
        for name, buffer in self._rows.items():
            self._session.bind(name, buffer[rows])
        self._session.bind("stg_mode", self._stg_mode)

    def __call__(self, latents: Array, timestep: np.float32 | Array, guided: StepGuidance) -> Array:
        if guided != self._guided:
            self._guide(guided)
        self._hidden_states[:] = latents
        self._timestep[:] = timestep
        for passes, modes in self._calls:
            if passes != self._bound_passes:
                self._bind(passes)
            self._stg_mode[:] = modes
            with self._stage("network"):
                self._session.enqueue()
        return self._velocity

    def __enter__(self) -> BoundTransformer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._session.unbind()
