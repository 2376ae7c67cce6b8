"""From a prompt's tokens to what the connectors are fed: which token stands where is decided here.

The text encoder's graph takes `input_ids` and `attention_mask`, (B, L) int64, and gives `prompt_embeds` (B, L, D): each
token's hidden states of all layers, normalised and projected, which is what a caller may pass as `prompt_embeds` too. D
is `caption_channels` up to 2.0; from 2.3 on, `video_hidden_dim` channels for the video, then `audio_hidden_dim` for the
sound. (diffusers' own `prompt_embeds` come before that, with 188,160 channels, and never leave the graph.) Connectors
are transformers over these features, in which learned registers may stand in place of padding.

The connectors' graph (B prompts, L text length):

| input | shape | holds |
|---|---|---|
| `prompt_embeds` | (B, L, D) | the text encoder's features |
| `token_index` | (B, L) int64 | with registers: which row of them stands at each place |
| `token_mask` | (B, L) | with registers: 1 where that row counts, 0 where a register does, number `place % registers` |
| `attention_mask` | (B, L) | without registers: 1 for tokens, 0 for padding, which the connectors do not attend to |
| `rope_cos`, `rope_sin`, `audio_rope_cos`, `audio_rope_sin` | (L, K) | places of the two connectors |

Its outputs are `encoder_hidden_states` (B, L, D') and `audio_encoder_hidden_states` (B, L, D''). The transformer
attends to all of them: the mask that diffusers' connectors return is of ones, without registers too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telecine.errors import RequestError
from telecine.families.ltx2.positions import connector_rope
from telecine.tokenizer import TokenizedText, Tokenizer

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Connectors:
    """`registers` of each connector, or none; the text length of their positions, and their frequencies, as torch's."""

    registers: int | None
    base_length: int
    frequencies: Array
    audio_frequencies: Array

    def check_length(self, length: int) -> None:
        """
        Raises:
            RequestError: registers do not fill this text length evenly.
        """
        if self.registers and length % self.registers:
            raise RequestError(
                f"a text length of {length}",
                expected=f"a multiple of {self.registers}: so many registers fill its padding",
                fix="Use max_sequence_length=1024, or leave it out.",
            )

    def inputs(self, mask: Array) -> dict[str, npt.NDArray[np.generic]]:
        """The graph's inputs of the table above but `prompt_embeds`, for a (B, L) mask of tokens.

        Raises:
            RequestError: as `check_length`.
        """
        length = mask.shape[1]
        self.check_length(length)
        cos, sin = connector_rope(self.frequencies, length, self.base_length)
        audio_cos, audio_sin = connector_rope(self.audio_frequencies, length, self.base_length)
        rope: dict[str, npt.NDArray[np.generic]] = {
            "rope_cos": cos,
            "rope_sin": sin,
            "audio_rope_cos": audio_cos,
            "audio_rope_sin": audio_sin,
        }
        if not self.registers:
            return {"attention_mask": mask.astype(np.float32), **rope}
        index, front = packing(mask)
        return {"token_index": index, "token_mask": front, **rope}


def packing(mask: Array) -> tuple[npt.NDArray[np.int64], Array]:
    """(B, L) mask of tokens → (B, L) rows, tokens first and in their order, and (B, L) whether a token stands there.

    Source: diffusers `LTX2ConnectorTransformer1d.forward`.
    """
    padding = ~(mask > 0)
    index = np.argsort(padding, axis=1, kind="stable").astype(np.int64)
    places = np.arange(mask.shape[1])
    return index, (places < (~padding).sum(axis=1, keepdims=True)).astype(np.float32)


def tokenize(tokenizer: Tokenizer, prompts: Sequence[str], max_sequence_length: int) -> TokenizedText:
    """(B, L) ids and mask of prompts without the white space around them, padded as the bundle's tokenizer says.

    Raises:
        RequestError: `max_sequence_length` leaves no room, or a prompt is not text.

    Source: diffusers `LTX2Pipeline._get_gemma_prompt_embeds`.
    """
    stripped = [prompt.strip() if isinstance(prompt, str) else prompt for prompt in prompts]
    return tokenizer.encode(stripped, max_sequence_length=max_sequence_length)
