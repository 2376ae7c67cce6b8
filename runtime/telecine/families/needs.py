"""What the stages that families share take in memory."""

from __future__ import annotations

from telecine.families.base import Models
from telecine.families.bound import ONE_BY_ONE
from telecine.memory_budget import FLOAT, Need
from telecine.request import Request
from telecine.shapes import VideoShape
from telecine.upscale_request import UpscaleRequest


def text_needs(models: Models, request: Request, host_bytes: int) -> tuple[Need, ...]:
    """Of the text encoder, one call for the prompts and one for the negative ones; none where embeddings are given."""
    if request.prompt_embeds is not None and request.negative_prompt_embeds is not None:
        return ()
    return (network_need(models, "text_encoder", request.prompts * request.max_sequence_length, host_bytes),)


def denoising_need(
    models: Models, request: Request, *, tokens: int, beside: int, passes: int, host_bytes: int
) -> tuple[Need, bool]:
    """Of the transformer, on so many tokens a video and others `beside` them; whether the limit asks for the `passes`
    of guidance one after the other."""
    batched, sequential = (
        network_need(models, "transformer", at_once * request.videos * (tokens + beside), host_bytes)
        for at_once in (passes, 1)
    )
    limit = request.tiling_options().memory_limit
    one_by_one = limit is not None and batched.alone > limit
    large = request.videos * tokens >= ONE_BY_ONE
    apart = one_by_one or (large and not models.facts("transformer").batch_pays)
    return sequential if apart else batched, one_by_one


def network_need(models: Models, component: str, rows: int, host_bytes: int) -> Need:
    """Of a network of linear layers, on so many rows of them."""
    facts = models.facts(component)
    return Need(
        component=component,
        weights=facts.weights,
        streams=facts.streams,
        activations=models.activation_bytes(component, rows),
        host=host_bytes,
    )


def frames_bytes(request: Request | UpscaleRequest, video: VideoShape) -> int:
    """Of frames that are kept until the run ends."""
    values = request.videos * video.num_frames * video.height * video.width * 3
    return values * (1 if request.output_type == "uint8" else FLOAT)
