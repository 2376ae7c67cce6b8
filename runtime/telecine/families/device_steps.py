"""Steps of `denoise` on a GPU: all stays there from the first step to the last, and the host adds nothing up.

What differs from step to step (timesteps, guidance, coefficients) is uploaded once, as a table with a row a step; a
step copies its row to one place on the device, where the networks find it: no address changes. `denoise_step` is a
graph of the bundle. Only noise that a sampler adds comes from the host while the steps run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.backends.base import Session
from telecine.backends.cuda.array import DeviceArray, DeviceView
from telecine.backends.cuda.workspace import Workspace, offsets
from telecine.denoise import LinearSampler
from telecine.families.base import Stage
from telecine.families.bound import Passes, Transformer
from telecine.guidance import Guidance, StepGuidance
from telecine.linear_step import LinearStep

Array = npt.NDArray[np.float32]
Pieces = Mapping[str, npt.NDArray[Any]]


class StepTable:
    """Small arrays of each step, by name: the latest step that was told of has its own at addresses that stay."""

    def __init__(self, workspace: Workspace, steps: list[Pieces]) -> None:
        self._steps = [(offsets(pieces)[0], pieces) for pieces in steps]
        self._size = max(offsets(pieces)[1] for pieces in steps)
        table = np.zeros((len(steps), self._size), np.uint8)
        for row, (places, pieces) in zip(table, self._steps, strict=True):
            for name, array in pieces.items():
                row[places[name] : places[name] + array.nbytes] = array.reshape(-1).view(np.uint8)
        self._table = workspace.upload("steps", table)
        self._now = workspace.array("step", (self._size,), np.uint8)

    def tell(self, index: int) -> dict[str, DeviceView]:
        """Step `index`'s arrays, at once for what the stream is given next."""
        self._now.copy_from(self._table.view((self._size,), np.uint8, offset=index * self._size))
        places, pieces = self._steps[index]
        return {name: self._now.view(array.shape, array.dtype, offset=places[name]) for name, array in pieces.items()}


class DeviceSteps:
    """`telecine.denoise.Steps` of (B, ...) latents in the workspace of the transformer's session.

    `stepper` is the session of `denoise_step`. A context manager: leaving it waits, and unbinds both sessions.
    """

    def __init__(
        self,
        transformer: Transformer,
        stepper: Session,
        latents: Array,
        *,
        sampler: LinearSampler,
        guidance: Guidance[StepGuidance],
        stage: Stage,
    ) -> None:
        workspace = transformer.session.workspace
        assert workspace is not None
        self._workspace, self._stage = workspace, stage
        self._transformer, self._session, self._stepper = transformer, transformer.session, stepper
        self._sampler, self._guidance = sampler, guidance
        steps = range(len(sampler.sigmas))
        self._forms = [(sampler.linear_preparation(index), sampler.linear_step(index)) for index in steps]
        self._keeps_denoised = sampler.anchor is None and any(np.any(step.anchor) for _, step in self._forms)
        self._calls = [transformer.calls(guidance.at(index).passes) for index in steps]
        self._bound: dict[str, DeviceArray | DeviceView] = {}
        self._upload(latents)
        self._table = StepTable(workspace, [self._pieces(index) for index in steps]) if steps else None

    def _upload(self, latents: Array) -> None:
        """What stays from the first step to the last."""
        workspace, transformer, shape = self._workspace, self._transformer, self._transformer.latents_shape
        # Latents with more axes than tokens have are one row of channels to `denoise_step`.
        self._flat = shape if len(shape) == 3 else (shape[0], 1, math.prod(shape[1:]))
        self._sample = workspace.upload("sample", latents.reshape(self._flat))
        zeros = np.zeros(self._flat, np.float32)
        anchor = self._sampler.anchor
        self._noise = workspace.upload("noise", zeros)
        self._anchor = workspace.upload("anchor", zeros if anchor is None else anchor.reshape(self._flat))
        self._moved, self._denoised = workspace.array("moved", self._flat), workspace.array("denoised", self._flat)
        passes = len(transformer.passes)
        # Zeros: a first preparation weighs predictions, of which there are none yet, by 0.
        self._predictions = workspace.upload("predictions", np.zeros((passes, *self._flat), np.float32))
        self._hidden_states = workspace.array("hidden_states", (passes, *transformer.hidden_shape))
        if transformer.image is not None:
            hidden = np.zeros(self._hidden_states.shape, np.float32)
            hidden[:, :, :, shape[2] :] = transformer.image
            self._hidden_states.upload(hidden)
        self._fixed = {name: workspace.upload(name, values) for name, values in transformer.constants.items()}
        self._rows = {
            passes: {
                name: workspace.upload(f"{name} {' '.join(passes)}", values[transformer.rows_of(passes)])
                for name, values in transformer.rows.items()
            }
            for passes in {passes for calls in self._calls for passes in calls}
        }

    def _pieces(self, index: int) -> Pieces:
        """What step `index` tells the networks; calls are numbered."""
        transformer, guided = self._transformer, self._guidance.at(index)
        tokens = math.prod(transformer.timestep_axes)
        preparation, step = self._forms[index]
        pieces: dict[str, npt.NDArray[Any]] = {
            "guidance": guided.weights(),
            "rescale": np.array([guided.rescaled], np.float32),
            "coefficients": step.coefficients(tokens),
        }
        if preparation is not None:
            pieces["preparation"] = preparation.coefficients(tokens)
        timestep = np.asarray(self._sampler.timesteps(index), np.float32)
        for number, passes in enumerate(self._calls[index]):
            rows = len(passes) * transformer.batch
            pieces[f"timestep {number}"] = np.broadcast_to(timestep, (rows, *transformer.timestep_axes)).copy()
            if transformer.blocks:
                pieces[f"stg_mode {number}"] = transformer.modes(guided, passes).copy()
        return pieces

    def step(self, index: int) -> None:
        assert self._table is not None
        with self._stage("network"):
            told, guided = self._table.tell(index), self._guidance.at(index)
            preparation, step = self._forms[index]
            if preparation is not None:
                self._move(preparation, told["preparation"], told, guided)
            self._fill_hidden_states(max(map(len, self._calls[index])))
            done = 0
            for number, passes in enumerate(self._calls[index]):
                self._bind(self._session, self._call(number, passes, done, told))
                self._session.enqueue(self._workspace.stream)
                done += len(passes)
            self._move(step, told["coefficients"], told, guided)
            if self._keeps_denoised:
                self._anchor.copy_from(self._denoised)

    def _call(
        self, number: int, passes: Passes, before: int, told: Mapping[str, DeviceView]
    ) -> Mapping[str, DeviceArray | DeviceView]:
        """All that the transformer takes and gives in a call; so many passes of the step ran `before`."""
        transformer = self._transformer
        rows = len(passes) * transformer.batch
        offset = before * self._sample.nbytes
        names = ("timestep", "stg_mode") if transformer.blocks else ("timestep",)
        return {
            **self._fixed,
            **self._rows[passes],
            **{name: told[f"{name} {number}"] for name in names},
            "hidden_states": self._hidden_states.view((rows, *transformer.hidden_shape[1:])),
            transformer.output: self._predictions.view((rows, *transformer.latents_shape[1:]), offset=offset),
        }

    def _move(
        self, form: LinearStep, coefficients: DeviceView, told: Mapping[str, DeviceView], guided: StepGuidance
    ) -> None:
        """The latents by a linear form, where the next call finds them."""
        if form.draw is not None:
            self._noise.upload(form.draw().reshape(self._flat))
        arrays: dict[str, DeviceArray | DeviceView] = {
            "predictions": self._predictions.view((len(guided.passes), *self._flat)),
            "guidance": told["guidance"], "rescale": told["rescale"], "coefficients": coefficients,
            "sample": self._sample, "noise": self._noise, "anchor": self._anchor,
            "latents": self._moved, "denoised": self._denoised,
        }  # fmt: skip
        self._bind(self._stepper, arrays)
        self._stepper.enqueue(self._workspace.stream)
        self._sample.copy_from(self._moved)

    def _bind(self, session: Session, arrays: Mapping[str, DeviceArray | DeviceView]) -> None:
        """Bind what is not bound."""
        for name, array in arrays.items():
            key = f"{'network' if session is self._session else 'step'} {name}"
            if self._bound.get(key) != array:
                session.bind(name, array)
                self._bound[key] = array

    def _fill_hidden_states(self, passes: int) -> None:
        """The latents once for each of the passes of a call, beside the image where there is one."""
        batch, frames, *axes = self._transformer.hidden_shape
        for number in range(passes):
            if self._transformer.image is None:
                self._hidden_states.copy_from(self._sample, offset=number * self._sample.nbytes)
            else:
                pitch = math.prod(axes) * self._sample.dtype.itemsize
                offset = number * batch * frames * pitch
                self._hidden_states.copy_pieces(self._sample, batch * frames, offset=offset, pitch=pitch)

    @property
    def latents(self) -> Array:
        """Downloaded, once the device has come so far."""
        with self._stage("network"):
            return self._sample.download().reshape(self._transformer.latents_shape)

    def replace(self, latents: Array) -> None:
        self._sample.upload(latents.reshape(self._flat))

    def __enter__(self) -> DeviceSteps:
        return self

    def __exit__(self, *exception: object) -> None:
        self._workspace.synchronize()
        self._session.unbind()
        self._stepper.unbind()
