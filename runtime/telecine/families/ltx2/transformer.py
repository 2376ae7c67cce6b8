"""What the transformer's graph is fed, step by step, beside latents, text and positions.

The graph (N = passes * B rows; T video tokens, S of the sound, L text length; float32):

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

Its outputs are `velocity` (N, T, C) and `audio_velocity` (N, S, C'). diffusers' `use_cross_timestep` is what the two
cross timesteps are: each other's `sigma` with it (2.3), the modality's own `timestep` without (2.0). There is no text
mask: the one that diffusers' connectors give it is of ones.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.families.ltx2.modalities import Told

Array = npt.NDArray[np.float32]


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
