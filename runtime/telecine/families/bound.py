"""A transformer with all that a run does not change: which passes it runs, in which calls, and on the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.backends.base import Session
from telecine.families.base import Stage
from telecine.guidance import Pass, StepGuidance

Array = npt.NDArray[np.float32]
Passes = tuple[Pass, ...]
# Tokens of a pass from which passes run one after the other, where a batch is no quicker: measured on a CPU, a batch of
# two is 12 % quicker at 27 tokens, 3 % slower at 1,024 and equal at 6,144, where it takes twice the activations.
ONE_BY_ONE = 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transformer:
    """A run's transformer: its session, the shapes of what passes through it, and what is always told.

    `latents_shape` is (B, ...), of so many `tokens` a video. `passes` are all that any step of the run needs, and
    `rows` (passes * B, ...) the inputs that differ between them; `constants` are for all. `image` (B, F, C', H, W)
    are channels beside those of (B, F, C, H, W) latents. `timestep` is (B, ...) of these axes; `stg_mode` has `blocks`
    rows, and is no input where there are none. `output` has the latents' shape. `one_by_one`: memory asks for passes
    one after the other.
    """

    session: Session
    latents_shape: tuple[int, ...]
    tokens: int
    passes: Passes
    rows: Mapping[str, Array]
    constants: Mapping[str, npt.NDArray[Any]]
    output: str
    image: Array | None = None
    timestep_axes: tuple[int, ...] = ()
    blocks: int = 0
    one_by_one: bool = False

    @property
    def batch(self) -> int:
        return self.latents_shape[0]

    @property
    def hidden_shape(self) -> tuple[int, ...]:
        """Of one pass's input: the latents', or (B, F, C + C', H, W)."""
        if self.image is None:
            return self.latents_shape
        batch, frames, channels, *sides = self.latents_shape
        return (batch, frames, channels + self.image.shape[2], *sides)

    def calls(self, passes: Passes) -> list[Passes]:
        """The passes of each call: all at once, or large ones one after the other where a batch does not pay."""
        pays = self.session.batch_pays or self.batch * self.tokens < ONE_BY_ONE
        return [passes] if pays and not self.one_by_one else [(each,) for each in passes]

    def rows_of(self, passes: Passes) -> slice:
        """B rows a pass. A step's passes are neighbours."""
        first = self.passes.index(passes[0]) * self.batch
        return slice(first, first + len(passes) * self.batch)

    def modes(self, guided: StepGuidance, passes: Passes) -> npt.NDArray[np.int32]:
        """(blocks, B a pass) modes of some of a step's passes."""
        first = guided.passes.index(passes[0])
        modes = guided.stg_modes(self.blocks, self.batch)
        return modes[:, first * self.batch : (first + len(passes)) * self.batch]


class BoundTransformer:
    """A transformer as a function of latents, timesteps and guidance, on the host's arrays.

    Returns (passes * B, ...) predictions of the step's own passes, in a buffer that the next call overwrites. A context
    manager: leaving it unbinds what the session would otherwise keep alive.
    """

    def __init__(self, transformer: Transformer, *, stage: Stage) -> None:
        self._transformer, self._session, self._stage = transformer, transformer.session, stage
        rows = len(transformer.passes) * transformer.batch
        # A step binds the rows of its passes, and nothing is copied.
        self._rows: dict[str, Array] = {
            "hidden_states": self._session.empty((rows, *transformer.hidden_shape[1:]), np.float32),
            "timestep": self._session.empty((rows, *transformer.timestep_axes), np.float32),
            transformer.output: self._session.empty((rows, *transformer.latents_shape[1:]), np.float32),
            **transformer.rows,
        }
        self._channels = transformer.latents_shape[2]
        if transformer.image is not None:
            images = np.concatenate([transformer.image] * len(transformer.passes))
            self._rows["hidden_states"][:, :, self._channels :] = images
        self._bound_passes: Passes = ()
        self._guided: StepGuidance | None = None
        for name, values in transformer.constants.items():
            self._session.bind(name, values)

    def _guide(self, guided: StepGuidance) -> None:
        """What one step's guidance asks for, which is often the next one's too."""
        self._guided, passes = guided, guided.passes
        rows = self._transformer.rows_of(passes)
        # Beside the latents' channels there may be an image's; tokens have all of theirs.
        hidden = self._rows["hidden_states"][rows, :, : self._channels]
        self._hidden_states = [
            hidden[first : first + self._transformer.batch] for first in range(0, len(hidden), self._transformer.batch)
        ]
        self._timestep, self._predictions = self._rows["timestep"][rows], self._rows[self._transformer.output][rows]
        self._calls = [(each, self._transformer.modes(guided, each)) for each in self._transformer.calls(passes)]

    def _bind(self, passes: Passes) -> None:
        """Bind the rows of these passes."""
        self._bound_passes = passes
        rows = self._transformer.rows_of(passes)
        for name, buffer in self._rows.items():
            self._session.bind(name, buffer[rows])
        if self._transformer.blocks:
            columns = len(passes) * self._transformer.batch
            self._stg_mode = self._session.empty((self._transformer.blocks, columns), np.int32)
            self._session.bind("stg_mode", self._stg_mode)

    def __call__(self, latents: Array, timestep: np.float32 | Array, guided: StepGuidance) -> Array:
        if guided != self._guided:
            self._guide(guided)
        for hidden_states in self._hidden_states:
            hidden_states[:] = latents
        self._timestep[:] = timestep
        for passes, modes in self._calls:
            if passes != self._bound_passes:
                self._bind(passes)
            if self._transformer.blocks:
                self._stg_mode[:] = modes
            with self._stage("network"):
                self._session.enqueue()
        return self._predictions

    def __enter__(self) -> BoundTransformer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._session.unbind()
