"""One whole run of CogVideoX on either side: what the networks were fed, each step's latents, the frames.

Both runs are observed, not rewritten: the bundle's through its sessions, diffusers' through hooks on its modules.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from telecine.families import FAMILIES
from telecine.families.cogvideox.host import Host
from telecine.families.cogvideox.positions import Rope
from telecine.request import Request
from telecine_export.families.cogvideox import networks
from telecine_export.source import Source
from telecine_export.verify.checks import Array, BundleModels, Call, Record, record_calls, to_numpy
from telecine_export.verify.modules import load_pipeline

SEED = 0
# Two prompts of different lengths (batch order), guidance that changes from step to step.
REQUEST: dict[str, Any] = {
    "prompt": ["a red ball rolls to the left", "A woman with long brown hair walks over the wet street at night."],
    "negative_prompt": ["worst quality, inconsistent motion, blurry", ""],
    "num_inference_steps": 4,
    "guidance_scale": 6.0,
    "use_dynamic_cfg": True,
    "output_type": "np",
}
SIZE = {"height": 64, "width": 96}
FRAMES, VIDEO_FRAMES = 9, 13  # models of 1.5 change videos of an even number of latents alone
STRENGTH = 0.8
POSITIONS = ("rope_cos", "rope_sin", "position_frames", "position_columns", "position_rows")
# In the order in which a divergence spreads.
RUN_STAGES = ("prompt_embeds", "start", "schedule", "positions", "latents", "decode_input", "frames")
_DENOISED = ("text_encoder", "transformer", "vae_encoder")  # images and videos are encoded
RUN_PARTS = {
    "prompt_embeds": ("text_encoder",),
    "start": ("vae_encoder",),
    "latents": _DENOISED,
    "decode_input": _DENOISED,
    "frames": (*_DENOISED, "vae_decoder"),
}


def request_of(source: Source) -> dict[str, Any]:
    """`REQUEST` at a size that the source's model can make, with what its pipeline takes beside text."""
    positions = Host.parse(networks.host(source)).positions
    size: dict[str, Any] = {**SIZE, "num_frames": FRAMES}
    if isinstance(positions, Rope) and positions.table_frames is not None:
        size |= networks.host(source)["sample"]
    pixels = np.random.default_rng(SEED).integers(0, 256, (VIDEO_FRAMES, *SIZE.values(), 3), dtype=np.uint8)
    inputs: dict[str, dict[str, Any]] = {
        "CogVideoXImageToVideoPipeline": {"image": list(pixels[:2])},
        "CogVideoXVideoToVideoPipeline": {"video": pixels, "strength": STRENGTH},
    }
    given = inputs.get(source.pipeline_class, {})
    if "video" in given:
        del size["num_frames"]
    return REQUEST | size | given


def bundle_run(models: BundleModels, source: Source, record: Record) -> None:
    """The request through the runtime's own pipeline; the record has what was reached, whatever then failed.

    Raises:
        TelecineError: the run failed.
    """
    spec = FAMILIES["cogvideox"].pipelines[source.pipeline_class]
    request = Request.resolve(request_of(source) | {"seed": SEED}, spec.model_defaults(models.host), spec.defaults)
    latents: list[Array] = []

    def callback(step: int, steps: int, sigma: float, values: Array) -> None:
        latents.append(values.copy())

    def stage(name: str) -> AbstractContextManager[None]:
        return nullcontext()

    try:
        output = spec.run(models, request, stage=stage, callback=callback)
        assert output.frames is not None
        record["frames"] = {"frames": output.frames.whole()}
    finally:
        _fill(record, models.calls["transformer"], latents)
        for call in models.calls["vae_decoder"][:1]:
            record["decode_input"] = {"latents": call["latents"]}
        for call in models.calls["transformer"][:1]:
            record["positions"] = {name: call[name] for name in POSITIONS if name in call}


def torch_run(source: Source, record: Record) -> None:
    """The request through diffusers' pipeline.

    Raises:
        SourceError: diffusers cannot load or run the source.
    """
    pipe = load_pipeline(source)
    pipe.set_progress_bar_config(disable=True)
    calls = record_calls(pipe.transformer, ("hidden_states", "encoder_hidden_states", "timestep"))
    rotary: list[tuple[Tensor, Tensor] | None] = []
    pipe.transformer.register_forward_pre_hook(
        lambda _, __, named: rotary.append(named["image_rotary_emb"]), with_kwargs=True
    )
    decodes = record_calls(pipe.vae.decoder, ("sample",))
    latents: list[Array] = []

    def callback(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents.append(to_numpy(values["latents"]))
        return values

    request = request_of(source)
    if "image" in request:
        request["image"] = [Image.fromarray(each) for each in request["image"]]
    if "video" in request:
        request["video"] = [Image.fromarray(each) for each in request["video"]]
    generator = torch.Generator("cpu").manual_seed(SEED)
    frames = pipe(**request, generator=generator, callback_on_step_end=callback).frames
    _fill(record, calls, latents)
    record["decode_input"] = {"latents": decodes[0]["sample"]}
    record["positions"] = _positions(pipe.transformer, calls[0]["hidden_states"].shape, rotary[0])
    record["frames"] = {"frames": np.asarray(frames)}


def _positions(model: Any, shape: tuple[int, ...], rotary: tuple[Tensor, Tensor] | None) -> dict[str, Array]:
    """What diffusers told of tokens' places, as the graph's inputs have it: a value a pair, a table an axis."""
    _, frames, _, height, width = shape
    config = model.config
    rows, columns = height // config.patch_size, width // config.patch_size
    if rotary is not None:
        size = (frames // (config.patch_size_t or 1), rows, columns, -1)
        return {name: to_numpy(table[:, ::2].reshape(size)) for name, table in zip(POSITIONS, rotary, strict=False)}
    ratio = config.temporal_compression_ratio
    joint = model.patch_embed._get_positional_embeddings(height, width, (frames - 1) * ratio + 1)
    table = joint[0, config.max_text_seq_length :].unflatten(0, (frames, rows, columns))
    quarter, side = table.shape[-1] // 4, 3 * table.shape[-1] // 8
    return {
        "position_frames": to_numpy(table[:, 0, 0, :quarter]),
        "position_columns": to_numpy(table[0, 0, :, quarter : quarter + side]),
        "position_rows": to_numpy(table[0, :, 0, quarter + side :]),
    }


def _fill(record: Record, calls: list[Call], latents: list[Array]) -> None:
    """Put what both sides record alike, from calls at the transformer's boundary, into the record."""
    if calls:
        record["prompt_embeds"] = {"embeddings": calls[0]["encoder_hidden_states"]}
        record["start"] = {"initial latents": calls[0]["hidden_states"]}
    if latents:
        record["schedule"] = {"timesteps": np.stack([call["timestep"] for call in calls])}
        record["latents"] = {f"after step {index + 1}": values for index, values in enumerate(latents)}
