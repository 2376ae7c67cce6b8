"""One whole run of LTX-Video on either side: what the networks were fed, each step's latents, the frames.

Both runs are observed, not rewritten: the bundle's through its sessions, diffusers' through hooks on its modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image
from torch import Tensor

from telecine.condition import Condition
from telecine.errors import RequestError, SourceError
from telecine.families import FAMILIES
from telecine.noise import SECOND_STREAM
from telecine.request import Request
from telecine.rope import RopeTables, expand
from telecine_export.source import Source
from telecine_export.verify.checks import Array, BundleModels, Call, Record, record_calls, to_numpy
from telecine_export.verify.modules import load_pipeline

SEED = 0
# The whole run: two prompts of different lengths (padding, batch order), guidance and rescaling on, a frame rate that
# is nobody's default.
REQUEST: dict[str, Any] = {
    "prompt": ["a red ball rolls to the left", "A woman with long brown hair walks over the wet street at night."],
    "negative_prompt": ["worst quality, inconsistent motion, blurry", ""],
    "height": 64,
    "width": 96,
    "num_frames": 17,
    "frame_rate": 24,
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "guidance_rescale": 0.7,
    "decode_timestep": 0.05,
    "decode_noise_scale": 0.025,
    "max_sequence_length": 128,
    "output_type": "np",
}
# What the pipelines of conditioned video get besides, at the request's size: a first frame for each prompt, and frames
# held softly. (Keyframes of two prompts fail in diffusers.)
PIXELS = np.random.default_rng(SEED).integers(0, 256, (9, REQUEST["height"], REQUEST["width"], 3), dtype=np.uint8)
STRENGTH = 0.6
TRANSFORMER_INPUTS = ("hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep")
DECODER_INPUTS = ("latents", "timestep")
# In the order in which a divergence spreads.
RUN_STAGES = ("prompt_embeds", "noise", "schedule", "rope", "latents", "decode_input", "frames")
_DENOISED = ("text_encoder", "transformer", "vae_encoder")  # conditions are encoded
RUN_PARTS = {
    "prompt_embeds": ("text_encoder",),
    "latents": _DENOISED,
    "decode_input": _DENOISED,
    "frames": (*_DENOISED, "vae_decoder"),
}


def bundle_run(models: BundleModels, source: Source, record: Record) -> None:
    """`REQUEST` through the runtime's own pipeline; the record has what was reached, whatever then failed.

    Raises:
        TelecineError: the run failed.
    """
    manifest = models.bundle.manifest
    pipelines = FAMILIES[manifest.family].pipelines
    if manifest.pipeline not in pipelines:
        raise RequestError(
            f"a whole run of {manifest.pipeline}",
            expected=f"one of {', '.join(pipelines)}",
            fix="Verify the components alone: name them with --stage.",
        )
    spec = pipelines[manifest.pipeline]
    inputs = {
        "LTXImageToVideoPipeline": {"image": list(PIXELS[:2])},
        "LTXConditionPipeline": {"conditions": [Condition(video=PIXELS, strength=STRENGTH)]},
    }.get(manifest.pipeline, {})
    request = Request.resolve(REQUEST | inputs | {"seed": SEED}, spec.defaults)
    sigmas: list[float] = []
    latents: list[Array] = []

    def callback(step: int, steps: int, sigma: float, values: Array) -> None:
        sigmas.append(sigma)
        latents.append(values.copy())

    def stage(name: str) -> AbstractContextManager[None]:
        return nullcontext()

    try:
        output = spec.run(models, request, stage=stage, callback=callback)
        assert output.frames is not None
        record["frames"] = {"frames": output.frames.whole()}
    finally:
        _fill(record, models.calls["transformer"], models.calls["vae_decoder"], sigmas, latents)
        for call in models.calls["transformer"][:1]:
            with source.checkpoint("transformer") as checkpoint:
                inner_dim = checkpoint.shape("proj_in.weight")[0]
            tables = RopeTables(cos=call["rope_cos"], sin=call["rope_sin"], index=call["rope_index"])
            cos, sin = expand(tables, inner_dim)
            record["rope"] = {"cos": cos, "sin": sin}


def torch_run(source: Source, record: Record) -> None:
    """`REQUEST` through diffusers' pipeline.

    Raises:
        SourceError: diffusers cannot load or run the source.
    """
    if source.pipeline_class == "LTXConditionPipeline" and source.config("scheduler").get("use_dynamic_shifting"):
        raise SourceError(
            f"{source.root} is a LTXConditionPipeline whose scheduler shifts by the number of tokens",
            expected="a scheduler that diffusers' own LTXConditionPipeline can run (it passes no mu)",
            fix="Verify the networks alone with --stage: the bundle itself runs.",
        )
    pipe = load_pipeline(source)
    pipe.set_progress_bar_config(disable=True)
    calls = record_calls(pipe.transformer, TRANSFORMER_INPUTS)
    decodes = record_calls(pipe.vae.decoder, DECODER_INPUTS)
    rotations: list[tuple[Tensor, Tensor]] = []
    pipe.transformer.rope.register_forward_hook(lambda _, __, output: rotations.append(output))
    latents: list[Array] = []

    def callback(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents.append(to_numpy(values["latents"]))
        return values

    generator = torch.Generator("cpu").manual_seed(SEED)
    images = [Image.fromarray(frame) for frame in PIXELS]
    given: dict[str, dict[str, Any]] = {
        "LTXImageToVideoPipeline": {"image": images[:2]},
        "LTXConditionPipeline": {"conditions": [LTXVideoCondition(video=images, strength=STRENGTH)]},
    }
    inputs = given.get(source.pipeline_class, {})
    with seeded_globally(SEED):
        frames = pipe(**REQUEST, **inputs, generator=generator, callback_on_step_end=callback).frames
    sigmas = pipe.scheduler.sigmas[: len(latents)].tolist()
    _fill(record, calls, decodes, sigmas, latents)
    cos, sin = rotations[0]
    record["rope"] = {"cos": to_numpy(cos[0]), "sin": to_numpy(sin[0])}
    record["frames"] = {"frames": np.asarray(frames)}


@contextmanager
def seeded_globally(seed: int) -> Iterator[None]:
    """torch's global generator as telecine's second stream of a seed: the decoder of 0.9.1 draws from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed ^ SECOND_STREAM)
        yield


def _fill(record: Record, calls: list[Call], decodes: list[Call], sigmas: list[float], latents: list[Array]) -> None:
    """Put what both sides record alike, from calls at the networks' boundaries, into the record."""
    held: dict[str, Array] = {}
    if calls:
        first = calls[0]
        # The bundle's run leaves out the last columns, where all texts are padding.
        mask = first["encoder_attention_mask"]
        used = np.flatnonzero(mask.any(axis=0))[-1] + 1
        mask = mask[:, :used]
        # What is attended to: of pads, which the mask hides, LTXConditionPipeline's embeddings are whatever is quick.
        embeddings = first["encoder_hidden_states"][:, :used] * mask[..., np.newaxis]
        record["prompt_embeds"] = {"embeddings": embeddings, "mask": mask}
        tokens, timestep = first["hidden_states"], first["timestep"]
        # Conditions are tokens with less noise, at an earlier timestep; they come from the encoder, which rounds.
        noisy = np.broadcast_to(timestep.reshape(len(tokens), -1) == timestep.max(), tokens.shape[:2])
        record["noise"] = {"initial latents": tokens[noisy]}
        held = {} if noisy.all() else {"conditions": tokens[~noisy]}
    if latents:
        # (steps, passes * B) timesteps: the graph takes them with a last axis of 1, torch without.
        timesteps = np.stack([call["timestep"].ravel() for call in calls])
        record["schedule"] = {"sigmas": np.array(sigmas, np.float32), "timesteps": timesteps}
        record["latents"] = held | {f"after step {index + 1}": values for index, values in enumerate(latents)}
    if decodes:
        # The noise maps of 0.9.1 are inputs of the graph alone.
        record["decode_input"] = {name: decodes[0][name] for name in DECODER_INPUTS if name in decodes[0]}
