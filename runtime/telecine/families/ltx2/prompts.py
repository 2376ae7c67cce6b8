"""From prompts to what the transformer attends to: the text encoder, then the connectors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from telecine.families.base import Models
from telecine.families.ltx2.host import Host
from telecine.families.ltx2.modalities import AudioVideo
from telecine.families.ltx2.request import LTX2Request
from telecine.families.ltx2.text import tokenize
from telecine.families.text import SIDES, prompts_of, warn_of_truncation
from telecine.guidance import Pass
from telecine.tokenizer import TokenizedText

Array = npt.NDArray[np.float32]


def texts(models: Models, request: LTX2Request, host: Host, passes: tuple[Pass, ...]) -> Mapping[Pass, AudioVideo]:
    """The connectors' (B, L, D) outputs for "positive", and for "negative" where the passes have it.

    Each prompt's videos stand together.

    Raises:
        RequestError: embeddings of another width, or a text length that the connectors cannot take.
    """
    sides = [each for each in passes if each in ("negative", "positive")]
    given = {side: request.embeds(SIDES[side], host.text_channels) for side in sides}
    length = given["positive"][0].shape[1] if given["positive"] else request.max_sequence_length
    host.connectors.check_length(length)
    # All is tokenized before the text encoder, gigabytes of it, is loaded for any.
    tokens = {
        side: tokenize(models.tokenizer, prompts_of(request, SIDES[side]), length)
        for side in sides
        if given[side] is None
    }
    for each in tokens.values():
        warn_of_truncation(each)
    features = {side: given[side] or _encode(models, tokens[side]) for side in sides}
    return {side: _connect(models, host, features[side], request.num_videos_per_prompt) for side in sides}


def _encode(models: Models, tokens: TokenizedText) -> tuple[Array, Array]:
    """(B, L, D) features and (B, L) mask of B prompts, one after the other: a row holds gigabytes of hidden states.

    The text encoder is loaded and run for those that are none of the latest.
    """

    def encode(row: npt.NDArray[np.int64]) -> Array:
        ids, mask = row[:, np.newaxis]
        return models.session("text_encoder").run({"input_ids": ids, "attention_mask": mask})["prompt_embeds"]

    # Ids alone do not tell what is padding: a prompt may hold its token too.
    rows = np.ascontiguousarray(np.stack([tokens.input_ids, tokens.attention_mask], axis=1))
    features = [models.prompts.embeds(row, partial(encode, row)) for row in rows]
    return np.concatenate(features), tokens.attention_mask.astype(np.float32)


def _connect(models: Models, host: Host, features: tuple[Array, Array], videos: int) -> AudioVideo:
    embeds, mask = features
    outputs = models.session("connectors").run({"prompt_embeds": embeds, **host.connectors.inputs(mask)})
    names = ("encoder_hidden_states", "audio_encoder_hidden_states")
    return AudioVideo(*(np.repeat(outputs[name], videos, axis=0) for name in names))
