"""The transformer of LTX-2 as a function of latents, timesteps and guidance, which predicts clean latents.

Its graph (N rows, which may be of several passes; T video tokens, S of the sound, L text length; float32):

| input | shape | holds |
|---|---|---|
| `hidden_states`, `audio_hidden_states` | (N, T, C), (N, S, C') | latents |
| `encoder_hidden_states`, `audio_encoder_hidden_states` | (N, L, D), (N, L, D') | the connectors' outputs |
| `timestep` | (N, timestep_tokens) | 0..1000; timestep_tokens is 1 or T |
| `audio_timestep` | (N, 1) | the sound's, none of whose tokens is held |
| `sigma`, `audio_sigma` | (N,) | timesteps of tokens that nothing holds; what the text is modulated by from 2.3 on |
| `cross_timestep` | (N, cross_timestep_tokens) | what the video's side of cross-modality attention is modulated by |
| `audio_cross_timestep` | (N, 1) | what its sound's side is modulated by |
| `perturbation_mask` | (blocks, N) | 0 where a block's self-attentions give their values alone |
| `modality_mask` | (N,) | 0 where video and sound do not attend to each other |
| `rope_...` | | `telecine.families.ltx2.positions` |

A graph has the inputs that its model reads: no `sigma` up to 2.0, no `perturbation_mask` without perturbed attention.
Its outputs are `velocity` (N, T, C) and `audio_velocity` (N, S, C'). diffusers' `use_cross_timestep` is what the two
cross timesteps are: each other's `sigma` with it (2.3), the modality's own `timestep` without (2.0). There is no text
mask: the one that diffusers' connectors give it is of ones. A graph of 2.0 has neither sigmas nor `perturbation_mask`,
which its model does not read.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from telecine.backends.base import Session
from telecine.families.base import Stage
from telecine.families.ltx2.guidance import StepGuidance, modality_mask
from telecine.families.ltx2.modalities import AudioVideo, Told, clean
from telecine.guidance import Pass

Array = npt.NDArray[np.float32]


class BoundTransformer:
    """The transformer with all that a run does not change bound once: a function of latents, Told and guidance.

    `texts` are the connectors' (B, L, D) outputs of each side, "positive" and, where a step needs it, "negative".
    `constants` are the graph's positions. Passes run one after the other: there is no gain in a batch of so large a
    model. Returns (passes * B, ...) clean latents. A context manager: leaving it unbinds what the session would
    otherwise keep alive.
    """

    def __init__(
        self,
        session: Session,
        texts: Mapping[Pass, AudioVideo],
        constants: Mapping[str, npt.NDArray[np.generic]],
        latents: AudioVideo,
        blocks: int,
        *,
        use_cross_timestep: bool,
        stage: Stage,
    ) -> None:
        self._session, self._texts, self._blocks, self._stage = session, texts, blocks, stage
        self._use_cross_timestep = use_cross_timestep
        self._batch = len(latents.video)
        self._latents, self._velocity = (
            AudioVideo(*(session.empty(each.shape, np.float32) for each in latents)) for _ in range(2)
        )
        self._inputs: dict[str, Array] = {}  # small ones, which steps and passes change
        for name, array in constants.items():
            session.bind(name, array)
        for prefix, inputs, outputs in zip(("", "audio_"), self._latents, self._velocity, strict=True):
            session.bind(f"{prefix}hidden_states", inputs)
            session.bind(f"{prefix}velocity", outputs)

    def __call__(self, latents: AudioVideo, told: Told, guided: StepGuidance) -> AudioVideo:
        for buffer, values in zip(self._latents, latents, strict=True):
            buffer[:] = values
        self._tell(timestep_inputs(told, self._batch, use_cross_timestep=self._use_cross_timestep))
        predicted = [self._run(each, guided, told, latents) for each in guided.passes]
        return AudioVideo(*(np.concatenate(each) for each in zip(*predicted, strict=True)))

    def _run(self, each: Pass, guided: StepGuidance, told: Told, latents: AudioVideo) -> AudioVideo:
        """One pass: its (B, ...) clean latents."""
        text = self._texts["negative" if each == "negative" else "positive"]
        for prefix, embeds in zip(("", "audio_"), text, strict=True):
            self._session.bind(f"{prefix}encoder_hidden_states", embeds)
        self._tell(
            {
                "perturbation_mask": guided.perturbation_mask((each,), self._blocks, self._batch),
                "modality_mask": modality_mask((each,), self._batch),
            }
        )
        with self._stage("network"):
            self._session.enqueue()
        return clean(self._velocity, latents, told)

    def _tell(self, inputs: dict[str, Array]) -> None:
        """Put values into the buffers that are bound for them. What the model does not read its graph does not have."""
        for name, values in inputs.items():
            if name not in self._session.inputs:
                continue
            if name not in self._inputs:
                self._inputs[name] = np.empty_like(values)
                self._session.bind(name, self._inputs[name])
            self._inputs[name][:] = values

    def __enter__(self) -> BoundTransformer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._session.unbind()


def timestep_inputs(told: Told, rows: int, *, use_cross_timestep: bool) -> dict[str, Array]:
    """The graph's timesteps of the table above, for N rows.

    Source: diffusers `LTX2VideoTransformer3DModel.forward`.
    """
    own, of_audio = told.timesteps, np.atleast_1d(told.audio_timestep)
    across = (of_audio, np.atleast_1d(told.timestep)) if use_cross_timestep else (own, of_audio)
    per_token = {
        "timestep": own,
        "audio_timestep": of_audio,
        "cross_timestep": across[0],
        "audio_cross_timestep": across[1],
    }
    repeated = {name: np.repeat(each[np.newaxis], rows, axis=0) for name, each in per_token.items()}
    sigmas = {"sigma": told.timestep, "audio_sigma": told.audio_timestep}
    return repeated | {name: np.full(rows, each, np.float32) for name, each in sigmas.items()}
