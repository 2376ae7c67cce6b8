"""`load` a bundle, `generate` a video, `save` it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.backends.base import out_of_memory
from telecine.backends.choice import choose_backend
from telecine.backends.onnxruntime import OnnxRuntimeOptions
from telecine.bundle import Bundle
from telecine.condition import Condition, ImageInput
from telecine.denoise import Callback
from telecine.errors import RequestError
from telecine.families import FAMILIES
from telecine.families.base import Family, Output, Stage
from telecine.models import LoadedModels
from telecine.pixels import to_uint8
from telecine.request import Request
from telecine.second_stage import SecondStage
from telecine.upscale_request import UpscaleRequest
from telecine.video import check_output_path, save_video


def load(
    path: str | Path,
    *,
    backend: str = "auto",
    device: str = "auto",
    engines: str | Path | None = None,
    options: OnnxRuntimeOptions | None = None,
) -> Pipeline:
    """Open a bundle on a backend. Networks load when a request first needs them.

    `backend` is "onnxruntime", "tensorrt" (every network needs an engine of `telecine build`) or "auto": TensorRT for a
    network where an engine, a library and a GPU fit, else ONNX Runtime. `device` is "cpu", "cuda", "cuda:N" or "auto":
    for TensorRT the first GPU, for ONNX Runtime the CPU. `engines` is the folder that they lie in, where it is not the
    bundle's own. `options` are ONNX Runtime's.

    Raises:
        BundleError: the bundle is missing, damaged, edited, or of a family that this telecine does not know.
        BackendError: an unknown backend or device, arguments that contradict each other, or, for "tensorrt", no GPU.
        EngineError: the folder of engines is missing.
    """
    bundle = Bundle.open(path)
    chosen = choose_backend(bundle, backend, device=device, engines=engines, options=options)
    return Pipeline(LoadedModels(bundle, chosen))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """What a run made.

    `frames`: (B, num_frames, height, width, 3), float32 in [0, 1] or uint8. `latents`: as the same diffusers pipeline
    returns them. `timings`: seconds by stage. `seeds`: what to pass to get the same video again.
    """

    frames: npt.NDArray[Any] | None
    latents: npt.NDArray[Any] | None
    frame_rate: float
    seeds: tuple[int, ...]
    timings: Mapping[str, float]

    def save(self, path: str | Path, *, frame_rate: float | None = None, quality: int | None = None) -> list[Path]:
        """Write each video (`.mp4`, `.webm`, `.gif`, or PNGs as `folder/%05d.png`); several get `-0`, `-1`, ... names.

        Raises:
            RequestError: there are no frames, the path cannot be written, or its format lacks the rate or quality.
            BackendError: PyAV is missing or fails, or memory runs out.
        """
        if self.frames is None:
            raise RequestError(
                "this result holds latents", expected="frames to save", fix="Generate with output_type='np' or 'uint8'."
            )
        rate = self.frame_rate if frame_rate is None else frame_rate
        paths = numbered(path, len(self.frames))
        for target in paths:  # all of them, before the first is written
            check_output_path(target, frame_rate=rate, quality=quality)
        try:
            for video, target in zip(self.frames, paths, strict=True):
                pixels = video if video.dtype == np.uint8 else to_uint8(video[np.newaxis])[0]
                save_video(pixels, target, frame_rate=rate, quality=quality)
        except MemoryError as error:
            raise out_of_memory(f"saving {path}: {error or 'a frame'}") from error
        return paths


def numbered(path: str | Path, count: int) -> list[Path]:
    """One path a video: the path itself for one, `name-0.mp4`, `name-1.mp4`, ... for several.

    Raises:
        RequestError: no name to number.
    """
    output = Path(os.path.expanduser(path))
    if count == 1:
        return [output]
    named = output.parent if output.suffix.lower() == ".png" else output  # each PNG sequence has a folder
    if named.name in ("", ".."):
        raise RequestError(
            f"{path} for {count} videos", expected="a name that takes numbers", fix="Use out.mp4 or frames/%05d.png."
        )
    if named is output:
        return [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(count)]
    return [named.with_name(f"{named.name}-{i}") / output.name for i in range(count)]


class Pipeline:
    """A bundle ready to make videos, one request at a time; a context manager that frees its networks."""

    def __init__(self, models: LoadedModels) -> None:
        self._models = models
        self._busy = threading.Lock()

    @property
    def bundle(self) -> Bundle:
        return self._models.bundle

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        frame_rate: float | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        guidance_rescale: float | Sequence[float] | None = None,
        guidance_sigmas: Sequence[float] | None = None,
        cfg_star: bool | None = None,
        stg_scale: float | Sequence[float] | None = None,
        stg_mode: str | None = None,
        stg_blocks: Sequence[int] | Sequence[Sequence[int]] | None = None,
        num_videos_per_prompt: int | None = None,
        seed: int | Sequence[int] | None = None,
        image: ImageInput | Sequence[ImageInput] | None = None,
        conditions: Condition | Sequence[Condition] | None = None,
        image_cond_noise_scale: float | None = None,
        denoise_strength: float | None = None,
        latents: npt.NDArray[Any] | None = None,
        prompt_embeds: npt.NDArray[Any] | None = None,
        prompt_attention_mask: npt.NDArray[Any] | None = None,
        negative_prompt_embeds: npt.NDArray[Any] | None = None,
        negative_prompt_attention_mask: npt.NDArray[Any] | None = None,
        decode_timestep: float | Sequence[float] | None = None,
        decode_noise_scale: float | Sequence[float] | None = None,
        output_type: str | None = None,
        max_sequence_length: int | None = None,
        second_stage: Mapping[str, Any] | None = None,
        pipeline: str | None = None,
        preset: str | None = None,
        callback: Callback | None = None,
    ) -> Result:
        """(B, num_frames, height, width, 3) frames from a prompt; parameters are diffusers', and so are the defaults.

        What is not given comes from `preset` (a name in the bundle's manifest), then from the diffusers pipeline that
        the bundle stands for (`pipeline` names another). `seed` means `torch.Generator("cpu").manual_seed(seed)`, or
        is a list, one a video; none is a random one, told in the result. `callback(step, steps, sigma, latents)` sees
        each step and may return new latents, or False to stop the run. `second_stage`, a dict of `SecondStage`'s
        settings, makes the video in two: at a low resolution, upsampled, denoised again, at any height and width.

        `stg_scale` above 0 is spatio-temporal guidance: away from a pass with its `stg_blocks` perturbed by `stg_mode`,
        "attention_values", "attention_skip" or "transformer_block". `cfg_star` scales the negative prediction to the
        positive one. The three scales may be lists, and `stg_blocks` a list of lists: one for each step; or one for
        each of the descending `guidance_sigmas`, where a step takes the first that is not above its own, or the last.

        `image` (one, or a list with one a video) and `conditions` choose the pipeline that takes them, where the
        bundle's own does not.

        Raises:
            RequestError: a parameter is wrong, or another request is running.
            BundleError: the bundle lacks what the request needs.
            BackendError: a network could not be loaded or run, or memory ran out.
            EngineError: no engine fits, or none has a profile for this size.
            Cancelled: the callback stopped the run.
        """
        asked = dict(locals())  # first of all: it holds the parameters and nothing else
        for name in ("self", "pipeline", "preset", "callback", "second_stage"):
            del asked[name]
        start = time.perf_counter()
        self._models.check_open()
        given = {name for name, value in asked.items() if value is not None}
        name = self._family.choose(self.bundle.manifest.pipeline, given, asked=pipeline)
        spec = self._family.pipelines[name]
        settings = self._family.settings(name, self._preset(preset))
        second = SecondStage.resolve(second_stage, settings.pop("second_stage", None))
        request = Request.resolve(asked, settings, spec.defaults)
        run = spec.run if second is None else partial(self._family.two_stage, spec, second)
        timings: dict[str, float] = {}
        with self._running():
            output = run(self._models, request, stage=_stopwatch(timings), callback=callback)
        return _result(output, request.frame_rate, timings, start)

    def upscale(
        self,
        video: Any = None,
        *,
        latents: npt.NDArray[Any] | None = None,
        height: int | None = None,
        width: int | None = None,
        frame_rate: float | None = None,
        adain_factor: float | None = None,
        tone_map_compression_ratio: float | None = None,
        decode_timestep: float | Sequence[float] | None = None,
        decode_noise_scale: float | Sequence[float] | None = None,
        seed: int | Sequence[int] | None = None,
        output_type: str | None = None,
    ) -> Result:
        """(B, num_frames, height, width, 3) frames, larger as the bundle's upsampler makes them, from smaller ones.

        Parameters are those of diffusers' `LTXLatentUpsamplePipeline`. `video` is a path, frames (F, H, W, 3) or a
        list of images, and is resized to `height` and `width` first (none: its own); or `latents`, (B, C, F, H, W) and
        normalised. `seed` is for the posterior of a video's latents, and the decoder's noise. `frame_rate` is the
        result's; none keeps a file's duration.

        Raises:
            RequestError: a parameter is wrong, or another request is running.
            BundleError: the bundle has no upsampler.
            BackendError: a network could not be loaded or run, or memory ran out.
        """
        asked = dict(locals())  # first of all: it holds the parameters and nothing else
        del asked["self"]
        start = time.perf_counter()
        self._models.check_open()
        upscaler = self._family.upscaler
        request = UpscaleRequest.resolve(asked, upscaler.defaults)
        timings: dict[str, float] = {}
        with self._running():
            output = upscaler.run(self._models, request, stage=_stopwatch(timings))
        assert output.frame_rate is not None
        return _result(output, output.frame_rate, timings, start)

    def clone(self) -> Pipeline:
        """A pipeline for another thread; a network that several of them use is loaded once.

        Raises:
            RequestError: this pipeline is closed.
        """
        return Pipeline(self._models.clone())

    @contextmanager
    def _running(self) -> Iterator[None]:
        """One request at a time; what NumPy cannot allocate is the same error as what the backend cannot."""
        if not self._busy.acquire(blocking=False):
            raise RequestError(
                "this pipeline is running another request",
                expected="one request at a time",
                fix="Use pipe.clone() for another thread: it shares the weights.",
            )
        try:
            yield
        except MemoryError as error:
            raise out_of_memory(f"the host's arrays: {error or 'no more memory'}") from error
        finally:
            self._busy.release()

    def close(self) -> None:
        """Free the networks; the pipeline cannot generate after."""
        self._models.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _family(self) -> Family:
        return FAMILIES[self.bundle.manifest.family]

    def _preset(self, name: str | None) -> Mapping[str, Any]:
        presets = self.bundle.manifest.presets
        if name is not None and name not in presets:
            raise RequestError(
                f"preset {name!r}", expected=f"one of {', '.join(presets)}", fix="telecine inspect lists them."
            )
        return presets[name] if name else {}


def _result(output: Output, frame_rate: float, timings: dict[str, float], start: float) -> Result:
    timings["total"] = time.perf_counter() - start
    return Result(
        frames=output.frames,
        latents=output.latents,
        frame_rate=frame_rate,
        seeds=output.seeds,
        timings=timings,
    )


def _stopwatch(timings: dict[str, float]) -> Stage:
    """A `Stage` that adds each stage's seconds to `timings`."""

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            timings[name] = timings.get(name, 0.0) + time.perf_counter() - start

    return stage
