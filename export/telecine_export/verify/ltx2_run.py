"""One whole run of LTX-2 on either side: what the networks were fed, each step's latents, the frames and the sound.

Both runs are observed, not rewritten: the bundle's through its sessions, diffusers' through hooks on its modules.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from PIL import Image

from telecine import Condition
from telecine.families import FAMILIES
from telecine.families.ltx2.request import LTX2Request
from telecine_export.families.ltx2 import gemma, networks
from telecine_export.families.ltx2.connectors import registers
from telecine_export.source import Source
from telecine_export.verify.checks import Array, BundleModels, Call, Record, record_calls, to_numpy
from telecine_export.verify.modules import load_pipeline

SEED = 0
STEPS = 3
# All kinds of guidance, of which a model of 2.0 perturbs nothing.
REQUEST: dict[str, Any] = {
    "prompt": "A woman with long brown hair walks over the wet street at night, and a dog barks.",
    "negative_prompt": "worst quality, inconsistent motion, blurry",
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "num_inference_steps": STEPS,
    "guidance_scale": 3.0,
    "stg_scale": 1.0,
    "spatio_temporal_guidance_blocks": [0],
    "output_type": "np",
}
TEXT_LENGTH = 128  # at the least: longer where the connectors have more registers
PIXELS = np.random.default_rng(SEED).integers(0, 256, (9, 64, 96, 3), dtype=np.uint8)
STRENGTH = 0.8
# In the order in which a divergence spreads.
RUN_STAGES = ("prompt_embeds", "start", "schedule", "latents", "sound_latents", "decode_input", "audio", "frames")
_DENOISED = ("text_encoder", "connectors", "transformer", "vae_encoder")  # images and videos are encoded
RUN_PARTS = {
    "prompt_embeds": ("text_encoder", "connectors"),
    "start": ("vae_encoder",),
    "latents": _DENOISED,
    "sound_latents": _DENOISED,
    "decode_input": _DENOISED,
    "audio": (*_DENOISED, "audio_vae_decoder", "vocoder"),
    "frames": (*_DENOISED, "vae_decoder"),
}
INPUTS = (
    "hidden_states", "audio_hidden_states", "encoder_hidden_states", "audio_encoder_hidden_states", "timestep",
    "audio_timestep",
)  # fmt: skip
TEXTS = INPUTS[2:4]


def request_of(source: Source) -> dict[str, Any]:
    """`REQUEST` as the source's model takes it."""
    length = max(TEXT_LENGTH, registers(gemma.connectors_config(source)) or 0)
    return {**REQUEST, "max_sequence_length": length, "use_cross_timestep": networks.variant(source) != "2.0"}


def bundle_run(models: BundleModels, source: Source, record: Record) -> None:
    """The request through the runtime's own pipeline; the record has what was reached, whatever then failed.

    Raises:
        TelecineError: the run failed.
    """
    spec = FAMILIES["ltx-2"].pipelines[source.pipeline_class]
    inputs = {
        "LTX2ImageToVideoPipeline": {"image": PIXELS[0], "image_crf": 0},
        "LTX2ConditionPipeline": {"conditions": [Condition(video=PIXELS, strength=STRENGTH)]},
    }.get(source.pipeline_class, {})
    request = LTX2Request.resolve(request_of(source) | inputs | {"seed": SEED}, spec.defaults)
    latents: list[Array] = []

    def callback(step: int, steps: int, sigma: float, values: Any) -> None:
        latents.append(values.video.copy())

    def stage(name: str) -> AbstractContextManager[None]:
        return nullcontext()

    try:
        output = spec.run(models, request, stage=stage, callback=callback)
        assert output.frames is not None
        assert output.audio is not None
        record["audio"] = {"audio": output.audio}
        record["frames"] = {"frames": output.frames.whole()}
    finally:
        calls = models.calls["transformer"]
        if len(calls) > 1:  # the negative prompt's pass, then the prompt's
            record["prompt_embeds"] = {name: np.concatenate([call[name] for call in calls[:2]]) for name in TEXTS}
        _fill(record, calls, latents)
        decodes = {"latents": "vae_decoder", "audio latents": "audio_vae_decoder"}
        record["decode_input"] = {
            name: models.calls[component][0]["latents"]
            for name, component in decodes.items()
            if models.calls[component]
        }


def torch_run(source: Source, record: Record) -> None:
    """The request through diffusers' pipeline.

    Raises:
        SourceError: diffusers cannot load or run the source.
    """
    pipe = load_pipeline(source)
    pipe.set_progress_bar_config(disable=True)
    calls = record_calls(pipe.transformer, INPUTS)
    decodes = record_calls(pipe.vae.decoder, ("latents",))
    audio_decodes = record_calls(pipe.audio_vae.decoder, ("latents",))
    latents: list[Array] = []

    def callback(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents.append(to_numpy(values["latents"]))
        return values

    given: dict[str, dict[str, Any]] = {
        "LTX2ImageToVideoPipeline": {"image": Image.fromarray(PIXELS[0]), "image_crf": 0},
        "LTX2ConditionPipeline": {"conditions": [LTX2VideoCondition(frames=PIXELS, strength=STRENGTH)]},
    }
    video, audio = pipe(
        **request_of(source),
        **given.get(source.pipeline_class, {}),
        generator=torch.Generator("cpu").manual_seed(SEED),
        callback_on_step_end=callback,
        return_dict=False,
    )
    record["prompt_embeds"] = {name: calls[0][name] for name in TEXTS}
    _fill(record, calls, latents)
    record["decode_input"] = {"latents": decodes[0]["latents"], "audio latents": audio_decodes[0]["latents"]}
    record["audio"] = {"audio": to_numpy(audio)}
    record["frames"] = {"frames": np.asarray(video)}


def _fill(record: Record, calls: list[Call], latents: list[Array]) -> None:
    """Put what both sides record alike, from the first call of each step, into the record; rows of a call are alike."""
    firsts = [{name: values[:1] for name, values in call.items()} for call in calls[:: max(len(calls) // STEPS, 1)]]
    if firsts:
        record["start"] = {"initial latents": firsts[0]["hidden_states"], "of sound": firsts[0]["audio_hidden_states"]}
        # diffusers tells a timestep a token where tokens are held, and else none of the sound's, which is the video's.
        record["schedule"] = {
            "timesteps": np.stack([call["timestep"].max(keepdims=True).ravel() for call in firsts]),
            "of sound": np.stack([call.get("audio_timestep", call["timestep"]).ravel()[:1] for call in firsts]),
        }
        record["sound_latents"] = {
            f"before step {index + 1}": call["audio_hidden_states"] for index, call in enumerate(firsts)
        }
    if latents:
        record["latents"] = {f"after step {index + 1}": values for index, values in enumerate(latents)}
