"""Record a request, and write it as a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from telecine.atomic import atomic_folder, check_folder_writable
from telecine.bundle import Bundle
from telecine.engine import Sidecar
from telecine.engines_folder import list_engines
from telecine.errors import EngineError, RequestError
from telecine.families import FAMILIES
from telecine.pipeline import Pipeline
from telecine.plan.backend import LaterPrompt, RecordingBackend, RecordingModels
from telecine.plan.document import FILE_NAME, TENSORS, as_json, document
from telecine.plan.inspection import is_plan
from telecine.plan.program import AUDIO
from telecine.plan.recorder import Recorder


def make_plan(
    bundle: Bundle,
    out: Path,
    *,
    videos: int = 1,
    prompt: str | list[str] | None = None,
    target: str | None = None,
    overwrite: bool = False,
    **parameters: Any,
) -> dict[str, Any]:
    """Write the folder `out`: `plan.json` (returned) and `tensors.safetensors`, what a host runs without Python.

    `parameters` are those of `Pipeline.generate`, which is run with networks that only record what is asked of them.
    `videos` is how many are made at once. Without a prompt the host fills in tokens and their mask. With a `target`,
    the tiles of the VAE are those that the bundle's engines for it take.

    Raises:
        RequestError: a parameter is wrong, `out` cannot be written, or a plan cannot hold what is asked.
        BundleError: the bundle lacks what the request needs.
        EngineError: there are no engines for the target, or they are too small.
    """
    _check_prompt(bundle, prompt, parameters)
    _check_one_stage(bundle, parameters)
    check_folder_writable(out, overwrite=overwrite, is_ours=is_plan)
    recorder = Recorder()
    backend = RecordingBackend(bundle, recorder, {} if target is None else _engines(bundle, target))
    with Pipeline(RecordingModels(bundle, backend, recorder)) as pipe:
        about = _record(pipe, recorder, _prompts(prompt, videos, parameters) | parameters)
    program = recorder.program.needed()
    content = document(program, bundle, _origin(bundle) | about)
    tensors = save({each.name: each.constant for each in program.buffers() if each.constant is not None})
    content["tensors"] = {"file": TENSORS, "size": len(tensors), "sha256": hashlib.sha256(tensors).hexdigest()}
    with atomic_folder(out, overwrite=overwrite, is_ours=is_plan) as folder:
        (folder / TENSORS).write_bytes(tensors)
        (folder / FILE_NAME).write_text(as_json(content), encoding="utf-8")
    return content


def _check_prompt(bundle: Bundle, prompt: str | list[str] | None, parameters: Mapping[str, Any]) -> None:
    family = FAMILIES.get(bundle.manifest.family)
    later = prompt is None and parameters.get("prompt_embeds") is None
    if later and family is not None and family.plan_needs_prompt is not None:
        raise RequestError(
            f"a plan of a {family.name} model without a prompt",
            expected=f"its prompt: {family.plan_needs_prompt}",
            fix="Pass prompt, or make a plan for each.",
        )


def _check_one_stage(bundle: Bundle, parameters: Mapping[str, Any]) -> None:
    preset = bundle.manifest.presets.get(parameters.get("preset") or "", {})
    if parameters.get("second_stage") is not None or "second_stage" in preset:
        raise RequestError(
            "two stages in a plan",
            expected="one: what the upsampler makes is scaled by its own statistics, channel by channel",
            fix="Leave second_stage, or the preset with it, out; or make it in Python.",
        )


def _prompts(prompt: str | list[str] | None, videos: int, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`prompt` and `num_videos_per_prompt` of so many videos; prompts that come later are one a video.

    Raises:
        RequestError: the prompts do not share the videos evenly.
    """
    embeds = parameters.get("prompt_embeds")
    if prompt is None and embeds is None:
        return {"prompt": [LaterPrompt()] * videos}
    count = len(embeds) if embeds is not None else 1 if isinstance(prompt, str) else len(prompt or ())
    if count == 0 or videos % count:
        raise RequestError(
            f"{count} prompts for {videos} videos",
            expected="as many videos of each",
            fix=f"Use @b{max(count, 1)} or a multiple of it in the workload.",
        )
    return {"prompt": prompt, "num_videos_per_prompt": videos // count}


def _record(pipe: Pipeline, recorder: Recorder, parameters: dict[str, Any]) -> dict[str, Any]:
    """Run the request; what `plan.json` says of its result."""
    parameters["callback"] = recorder.progress
    if parameters.get("output_type") == "latent":
        result = pipe.generate(**parameters)
        latents: Any = result.latents
        recorder.emit(latents, 0)
        made = {"kind": "latents", "dtype": latents.dtype.name, "shape": list(latents.shape)}
        made |= {"frame_rate": result.frame_rate, **_sound(recorder, result.audio_latents, None)}
        return {"seeds": list(result.seeds), "output": made}
    start = 0
    with pipe.stream(**parameters) as stream:
        sound = _sound(recorder, stream.audio, stream.sample_rate)
        for piece in stream:
            recorder.emit(piece, start)  # type: ignore[arg-type]
            start += piece.shape[1]
    made = {"kind": "frames", "dtype": piece.dtype.name, "shape": list(stream.shape)}
    return {"seeds": list(stream.seeds), "output": made | {"frame_rate": stream.frame_rate, **sound}}


def _sound(recorder: Recorder, sound: Any, sample_rate: int | None) -> dict[str, Any]:
    """Record that the sound is there, or its latents; what `output` says of it, where the model makes any."""
    if sound is None:
        return {}
    recorder.emit(sound, 0, AUDIO)
    rate = {} if sample_rate is None else {"sample_rate": sample_rate}
    return {AUDIO: {"dtype": sound.dtype.name, "shape": list(sound.shape), **rate}}


def _origin(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {"family": manifest.family, "variant": manifest.variant}


def _engines(bundle: Bundle, target: str) -> dict[tuple[str, str], Sidecar]:
    """The newest engine of each graph for a target.

    Raises:
        EngineError: there is none.
    """
    sidecars = [engine.sidecar for engine in list_engines(bundle.root / "engines")]
    found = {(each.component, each.role): each for each in sidecars if each.target == target}
    if not found:
        raise EngineError(
            f"no engine for {target} in {bundle.root}",
            expected=f"one of {', '.join(sorted({each.target for each in sidecars})) or 'none that are there'}",
            fix=f"Run: telecine build BUNDLE --target {target}, or leave --target out.",
        )
    return found
