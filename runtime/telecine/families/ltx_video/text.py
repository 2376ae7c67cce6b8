"""From prompts to what the transformer attends to."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from telecine.families.base import Models
from telecine.families.ltx_video.host import Host
from telecine.guidance import Guidance
from telecine.request import Request
from telecine.tokenizer import TokenizedText

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]


def prompt_embeddings(models: Models, request: Request, host: Host, guidance: Guidance) -> tuple[Array, Array]:
    """(passes * B, L, D) embeddings and (passes * B, L) mask, negative before positive."""
    sides = ("prompt",) if guidance.passes == 1 else ("negative_prompt", "prompt")
    given = {side: request.embeds(side, host.text_channels) for side in sides}
    length = given["prompt"][0].shape[1] if given["prompt"] else request.max_sequence_length
    # All is tokenized before the text encoder, gigabytes of it, is loaded for any.
    tokens = {side: _tokenize(models, _prompts(request, side), length) for side in sides if given[side] is None}
    parts = [given[side] or _encode(models, tokens[side]) for side in sides]
    # Each prompt's videos stand together (diffusers tiles its masks in another order than its embeddings).
    repeated = [[np.repeat(array, request.num_videos_per_prompt, axis=0) for array in part] for part in parts]
    return np.concatenate([part[0] for part in repeated]), np.concatenate([part[1] for part in repeated])


def _prompts(request: Request, side: str) -> list[str]:
    """One text a prompt: a single negative prompt, or none, is everyone's."""
    texts = getattr(request, side) or ""
    return [texts] * request.prompts if isinstance(texts, str) else list(texts)


def _tokenize(models: Models, prompts: list[str], length: int) -> TokenizedText:
    tokens = models.tokenizer.encode(prompts, max_sequence_length=length)
    for removed in filter(None, tokens.truncated):
        logger.warning("the prompt is longer than max_sequence_length=%d tokens; cut off: %r", length, removed)
    return tokens


def _encode(models: Models, tokens: TokenizedText) -> tuple[Array, Array]:
    """(B, L, D) embeddings and (B, L) mask of B prompts; pads are embedded too, as diffusers does."""
    embeds = models.session("text_encoder").run({"input_ids": tokens.input_ids})["prompt_embeds"]
    return embeds, tokens.attention_mask.astype(np.float32)
