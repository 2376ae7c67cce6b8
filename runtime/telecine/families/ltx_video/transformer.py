"""The transformer of LTX-Video as a function of latents and timesteps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.backends.base import Session
from telecine.families.ltx_video.host import Host
from telecine.rope import RopeTables

Array = npt.NDArray[np.float32]


class BoundTransformer:
    """The transformer with all that a run does not change bound once: a function of latents and timesteps.

    It is told one timestep, or one a token: `timestep_tokens` is 1 or T. Returns (passes * B, T, C) velocities, in a
    buffer that the next call overwrites. A context manager: leaving it unbinds what the session would otherwise keep
    alive.
    """

    def __init__(
        self,
        session: Session,
        host: Host,
        text: Array,
        mask: Array,
        rope: RopeTables,
        latents_shape: tuple[int, ...],
        passes: int,
        timestep_tokens: int = 1,
    ) -> None:
        batch, tokens, channels = latents_shape
        self._session = session
        self._hidden_states = np.empty((passes, batch, tokens, channels), np.float32)
        self._timestep = np.empty((passes * batch, timestep_tokens), np.float32)
        self._velocity = np.empty((passes * batch, tokens, channels), np.float32)
        buffers: dict[str, npt.NDArray[Any]] = {
            "hidden_states": self._hidden_states.reshape(passes * batch, tokens, channels),
            "encoder_hidden_states": text,
            "encoder_attention_mask": mask,
            "timestep": self._timestep,
            "rope_cos": rope.cos,
            "rope_sin": rope.sin,
            "rope_index": rope.index,
            "stg_mode": np.zeros((host.transformer_blocks, passes * batch), np.int32),
        }
        session.output_shapes({name: buffer.shape for name, buffer in buffers.items()})
        for name, buffer in (buffers | {"velocity": self._velocity}).items():
            session.bind(name, buffer)

    def __call__(self, latents: Array, timestep: np.float32 | Array) -> Array:
        self._hidden_states[:] = latents
        self._timestep[:] = timestep
        self._session.enqueue()
        return self._velocity

    def __enter__(self) -> BoundTransformer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._session.unbind()
