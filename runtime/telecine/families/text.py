"""From prompts to what the transformer attends to."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from telecine.families.base import Models
from telecine.guidance import Guidance, Pass
from telecine.request import Request
from telecine.tokenizer import TokenizedText

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]
SIDES: Mapping[Pass, str] = {
    "negative": "negative_prompt",
    "positive": "prompt",
    "perturbed": "prompt",
    "isolated": "prompt",
}


def prompt_embeddings(
    models: Models, request: Request, text_channels: int, guidance: Guidance, *, attend_pads: bool
) -> tuple[Array, Array]:
    """(passes * B, L, D) embeddings and (passes * B, L) mask of the passes that the run needs, in their order.

    diffusers lets T5 attend to pads, but for `LTXConditionPipeline`, which masks them.
    """
    sides = tuple(dict.fromkeys(SIDES[each] for each in guidance.passes))
    given = {side: request.embeds(side, text_channels) for side in sides}
    length = given["prompt"][0].shape[1] if given["prompt"] else request.max_sequence_length
    # All is tokenized before the text encoder, gigabytes of it, is loaded for any.
    tokens = {side: _tokenize(models, prompts_of(request, side), length) for side in sides if given[side] is None}
    encode = _encode if attend_pads else _encode_unpadded
    parts = {side: given[side] or encode(models, tokens[side]) for side in sides}
    # Each prompt's videos stand together (diffusers tiles its masks in another order than its embeddings).
    embeds, mask = (
        np.concatenate([np.repeat(array, request.num_videos_per_prompt, axis=0) for array in arrays])
        for arrays in zip(*(parts[SIDES[each]] for each in guidance.passes), strict=True)
    )
    return embeds, mask


def prompts_of(request: Request, side: str) -> list[str]:
    """One text a prompt: a single negative prompt, or none, is everyone's."""
    texts = getattr(request, side) or ""
    return [texts] * request.prompts if isinstance(texts, str) else list(texts)


def _tokenize(models: Models, prompts: list[str], length: int) -> TokenizedText:
    tokens = models.tokenizer.encode(prompts, max_sequence_length=length)
    warn_of_truncation(tokens)
    return tokens


def warn_of_truncation(tokens: TokenizedText) -> None:
    for removed in filter(None, tokens.truncated):
        length = tokens.input_ids.shape[1]
        logger.warning("the prompt is longer than max_sequence_length=%d tokens; cut off: %r", length, removed)


def _encode(models: Models, tokens: TokenizedText) -> tuple[Array, Array]:
    """(B, L, D) embeddings and (B, L) mask of B prompts; pads are embedded too, as diffusers does."""
    return _embed(models, tokens.input_ids), tokens.attention_mask.astype(np.float32)


def _encode_unpadded(models: Models, tokens: TokenizedText) -> tuple[Array, Array]:
    """(B, L, D) embeddings and (B, L) mask of B prompts, of which T5 sees no pad.

    T5 knows distances only, so masking the pads is encoding each prompt at its own length. Rows of pads are zeros:
    the transformer's mask hides them.
    """
    mask = tokens.attention_mask.astype(np.float32)
    prompts = [
        _embed(models, np.ascontiguousarray(ids[np.newaxis, : int(used)]))
        for ids, used in zip(tokens.input_ids, mask.sum(axis=1), strict=True)
    ]
    length = mask.shape[1]
    return np.concatenate([np.pad(each, [(0, 0), (0, length - each.shape[1]), (0, 0)]) for each in prompts]), mask


def _embed(models: Models, input_ids: npt.NDArray[np.int64]) -> Array:
    """(B, L) ids → (B, L, D). The text encoder is loaded and run where they are none of the latest."""

    def encode() -> Array:
        return models.session("text_encoder").run({"input_ids": input_ids})["prompt_embeds"]

    return models.prompts.embeds(input_ids, encode)
