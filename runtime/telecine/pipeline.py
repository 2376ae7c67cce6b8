"""`load` a bundle, `generate` a video, `save` it."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from telecine.backends.base import out_of_memory
from telecine.backends.choice import choose_backend
from telecine.backends.cuda.options import CudaGraphs
from telecine.backends.onnxruntime import OnnxRuntimeOptions
from telecine.bundle import Bundle
from telecine.condition import Condition, ImageInput, VideoInput
from telecine.denoise import Callback
from telecine.errors import RequestError
from telecine.families import FAMILIES
from telecine.families.base import Family, Output, Stage
from telecine.lora import Lora, LoraInput, resolve
from telecine.models import PROMPT_CACHE, LoadedModels
from telecine.peak_memory import MemoryUse
from telecine.request import Request
from telecine.results import FrameStream, Result, stopwatch
from telecine.second_stage import SecondStage
from telecine.tiling.options import parse_size
from telecine.upscale_request import UpscaleRequest

T = TypeVar("T")


class Make(Protocol):
    """A run with everything decided but who times its stages."""

    def __call__(self, *, stage: Stage) -> Output: ...


def load(
    path: str | Path,
    *,
    backend: str = "auto",
    device: str = "auto",
    engines: str | Path | None = None,
    options: OnnxRuntimeOptions | None = None,
    stream: int | None = None,
    cuda_graphs: CudaGraphs = "auto",
    prompt_cache: int | str = PROMPT_CACHE,
) -> Pipeline:
    """Open a bundle on a backend. Networks load when a request first needs them.

    `backend` is "onnxruntime", "tensorrt" (every network needs an engine of `telecine build`) or "auto": TensorRT for a
    network where an engine, a library and a GPU fit, else ONNX Runtime. `device` is "cpu", "cuda", "cuda:N" or "auto":
    for TensorRT the first GPU, for ONNX Runtime the CPU. `engines` is the folder that they lie in, where it is not the
    bundle's own. `options` are ONNX Runtime's. `stream` is the handle of a CUDA stream of the caller's (`cudaStream_t`
    as a number), which all work on the GPU that `device` names goes to, clones' too; it must outlive them.
    `prompt_cache` (bytes, or "64MiB"; 0 for none) is what the embeddings of the latest prompts may take: a prompt that
    is among them does not run the text encoder again, nor load it.

    `cuda_graphs` records what a network gives the GPU and then gives it as a whole, for each size and place of its
    arrays: True always, False never. "auto" is for TensorRT, where launching takes the host at least half as long as
    running takes the device; not for ONNX Runtime, whose capture allows no allocation in other threads.

    Raises:
        RequestError: a `prompt_cache` that is no size.
        BundleError: the bundle is missing, damaged, edited, or of a family that this telecine does not know.
        BackendError: an unknown backend or device, arguments that contradict each other, or, for "tensorrt", no GPU.
        EngineError: the folder of engines is missing.
    """
    capacity = parse_size(prompt_cache, "prompt_cache", least=0)
    bundle = Bundle.open(path)
    chosen = choose_backend(
        bundle, backend, device=device, engines=engines, options=options, stream=stream, cuda_graphs=cuda_graphs
    )
    return Pipeline(LoadedModels(bundle, chosen, prompt_cache=capacity))


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
        motion_speed: float | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        guidance_rescale: float | Sequence[float] | None = None,
        guidance_sigmas: Sequence[float] | None = None,
        cfg_star: bool | None = None,
        stg_scale: float | Sequence[float] | None = None,
        stg_mode: str | None = None,
        stg_blocks: Sequence[int] | Sequence[Sequence[int]] | None = None,
        spatio_temporal_guidance_blocks: Sequence[int] | None = None,
        modality_scale: float | Sequence[float] | None = None,
        audio_guidance_scale: float | Sequence[float] | None = None,
        audio_guidance_rescale: float | Sequence[float] | None = None,
        audio_stg_scale: float | Sequence[float] | None = None,
        audio_modality_scale: float | Sequence[float] | None = None,
        use_cross_timestep: bool | None = None,
        num_videos_per_prompt: int | None = None,
        seed: int | Sequence[int] | None = None,
        image: ImageInput | Sequence[ImageInput] | None = None,
        image_crf: int | None = None,
        conditions: Condition | Sequence[Condition] | None = None,
        video: VideoInput | None = None,
        strength: float | None = None,
        use_dynamic_cfg: bool | None = None,
        image_cond_noise_scale: float | None = None,
        denoise_strength: float | None = None,
        latents: npt.NDArray[Any] | None = None,
        audio_latents: npt.NDArray[Any] | None = None,
        noise_scale: float | None = None,
        prompt_embeds: npt.NDArray[Any] | None = None,
        prompt_attention_mask: npt.NDArray[Any] | None = None,
        negative_prompt_embeds: npt.NDArray[Any] | None = None,
        negative_prompt_attention_mask: npt.NDArray[Any] | None = None,
        decode_timestep: float | Sequence[float] | None = None,
        decode_noise_scale: float | Sequence[float] | None = None,
        output_type: str | None = None,
        max_sequence_length: int | None = None,
        second_stage: Mapping[str, Any] | None = None,
        tiling: str | None = None,
        tile_size: int | None = None,
        tile_stride: int | None = None,
        tile_frames: int | None = None,
        tile_frame_stride: int | None = None,
        memory_limit: int | str | None = None,
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

        `image` (one, or a list with one a video), `video`, `conditions` and `second_stage` choose the pipeline that
        takes them, where the bundle's own does not. `strength` is how much of a `video` CogVideoX makes anew,
        `use_dynamic_cfg` its guidance that grows along the steps. Each family refuses the parameters that it does not
        have, and says why.

        LTX-2 makes sound too, the result's `audio`. Scales that begin with `audio_` are the sound's (0 means the
        video's, as in diffusers); `modality_scale` guides away from a pass in which video and sound know nothing of
        each other; `spatio_temporal_guidance_blocks` are its `stg_blocks`. `sigmas` are its steps, and `noise_scale` is
        the share of noise that `latents` and `audio_latents` begin with. The callback's latents are a pair.

        `memory_limit` (bytes, or "8GiB") is what the whole run may add to the process: libraries, networks, activations
        and frames. To meet it, networks of other stages are dropped before one is loaded, then passes of guidance run
        one after the other, then the VAE runs on tiles (see `telecine.memory_budget`); the result's `memory` has the
        predicted and the measured peak. `tiling` is "auto", "off", "seamless" or "diffusers"; sizes of tiles are in
        pixels and frames, context included.

        Raises:
            RequestError: a parameter is wrong, or another request is running.
            BundleError: the bundle lacks what the request needs.
            BackendError: a network could not be loaded or run, or memory ran out.
            EngineError: no engine fits, or none has a profile for this size.
            Cancelled: the callback stopped the run.
        """
        asked = dict(locals())  # first of all: it holds the parameters and nothing else
        del asked["self"]
        return self._whole(*self._generation(asked))

    def stream(self, prompt: str | Sequence[str] | None = None, **parameters: Any) -> FrameStream:
        """The frames of `generate`, bit for bit, in pieces along time: each is decoded when it is asked for.

        Takes the parameters of `generate`. The denoising is done when this returns. Pieces are shorter than the video
        where `memory_limit` or `tiling` cut it in time. The pipeline is busy until the last piece is out, or the
        stream is closed.

        Raises:
            RequestError: as `generate`; or `output_type` is "latent".
            BundleError, BackendError, Cancelled: as `generate`.
        """
        return self._stream(*self._generation(_asked(_GENERATE, self, prompt, parameters)))

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
        tiling: str | None = None,
        tile_size: int | None = None,
        tile_stride: int | None = None,
        tile_frames: int | None = None,
        tile_frame_stride: int | None = None,
        memory_limit: int | str | None = None,
    ) -> Result:
        """(B, num_frames, height, width, 3) frames, larger as the bundle's upsampler makes them, from smaller ones.

        Parameters are those of diffusers' `LTXLatentUpsamplePipeline`. `video` is a path, frames (F, H, W, 3) or a
        list of images, and is resized to `height` and `width` first (none: its own); or `latents`, (B, C, F, H, W) and
        normalised. `seed` is for the posterior of a video's latents, and the decoder's noise. `frame_rate` is the
        result's; none keeps a file's duration. `memory_limit` and tiles are as in `generate`.

        Raises:
            RequestError: a parameter is wrong, or another request is running.
            BundleError: the bundle has no upsampler.
            BackendError: a network could not be loaded or run, or memory ran out.
        """
        asked = dict(locals())  # first of all: it holds the parameters and nothing else
        del asked["self"]
        return self._whole(*self._upscaling(asked))

    def stream_upscaled(self, video: Any = None, **parameters: Any) -> FrameStream:
        """The frames of `upscale`, bit for bit, in pieces along time; see `stream`.

        Raises:
            RequestError: as `upscale`; or `output_type` is "latent".
            BundleError, BackendError: as `upscale`.
        """
        return self._stream(*self._upscaling(_asked(_UPSCALE, self, video, parameters)))

    def _generation(self, asked: dict[str, Any]) -> tuple[Request, Make]:
        """The request that the parameters of `generate` come to, and what runs it."""
        self._models.check_open()
        pipeline, preset, callback, second_stage = (
            asked.pop(name, None) for name in ("pipeline", "preset", "callback", "second_stage")
        )
        values = self._preset(preset)
        given = {name for name, value in asked.items() if value is not None}
        if second_stage is not None or "second_stage" in values:
            given.add("second_stage")
        name = self._family.choose(self.bundle.manifest.pipeline, given, asked=pipeline)
        spec = self._family.pipelines[name]
        settings = self._family.settings(name, values)
        stages = [second_stage, settings.pop("second_stage", None)]
        run: Any = spec.run
        if any(stage is not None for stage in stages):
            two = _existing(self._family.two_stage, "second_stage")
            second = SecondStage.resolve(*stages, defaults=two.defaults, refinement=two.refinement)
            run = partial(two.run, spec, second)
        request = spec.request.resolve(asked, settings, spec.model_defaults(self._models.host), spec.defaults)
        return request, partial(run, self._models, request, callback=callback)

    def _upscaling(self, asked: dict[str, Any]) -> tuple[UpscaleRequest, Make]:
        """As `_generation`, for the parameters of `upscale`."""
        self._models.check_open()
        upscaler = _existing(self._family.upscaler, "upscale")
        request = UpscaleRequest.resolve(asked, upscaler.defaults)
        return request, partial(upscaler.run, self._models, request)

    def _stream(self, request: Request | UpscaleRequest, make: Make) -> FrameStream:
        if request.output_type == "latent":
            raise RequestError(
                "a stream of latents", expected="frames", fix="Use generate or upscale for output_type='latent'."
            )
        timings: dict[str, float] = {}
        memory = MemoryUse()
        run = self._run(make, timings, memory, keeps_frames=False)
        output = next(run)
        return FrameStream(run, output, _rate(output, request), timings, memory)

    def _whole(self, request: Request | UpscaleRequest, make: Make) -> Result:
        timings: dict[str, float] = {}
        memory = MemoryUse()
        run = self._run(make, timings, memory, keeps_frames=True)
        output = next(run)
        frames = None
        with closing(run):
            if output.frames is not None:
                frames = FrameStream(run, output, _rate(output, request), timings, memory).whole()
        return Result(
            frames=frames,
            latents=output.latents,
            audio=output.audio,
            sample_rate=output.sample_rate,
            audio_latents=output.audio_latents,
            frame_rate=_rate(output, request),
            seeds=output.seeds,
            timings=timings,
            memory=memory,
        )

    def _run(
        self, make: Make, timings: dict[str, float], memory: MemoryUse, *, keeps_frames: bool
    ) -> Generator[Any, None, None]:
        """First the run's `Output`, then its frames in pieces. Closed or dropped, it lets the next request in."""
        stage = stopwatch(timings)
        with stage("total"), self._running(), self._models.running(stage, memory, keeps_frames=keeps_frames):
            output = make(stage=stage)
            yield output
            while output.frames is not None:
                with stage("decode"):
                    piece = next(output.frames.pieces, None)
                if piece is None:
                    return
                yield piece
                del piece  # or it would live on while the next one is made

    def load_lora(self, lora: LoraInput | Sequence[LoraInput]) -> None:
        """Let LoRA files act, in place of any that did: a path, `(path, scale)`, or a list of them, which add up.

        Files are safetensors in diffusers', PEFT's, kohya's or the original layout; they are not needed after. A clone
        shares the weights, and so the LoRA. The same files give the same frames, whatever acted before.

        Raises:
            SourceError: a file is missing, damaged, of another model or no plain LoRA; nothing has changed.
            RequestError: a request is running on this pipeline or a clone, or this pipeline is closed.
            BackendError: the network could not be loaded with the new weights; it keeps what it had.
        """
        loras = resolve(lora)
        self._models.change_weights(lambda changes: changes.with_loras(self.bundle, loras))

    def unload_lora(self) -> None:
        """The weights without any LoRA again, to the bit.

        Raises:
            RequestError, BackendError: see `load_lora`.
        """
        self._models.change_weights(lambda changes: changes.with_loras(self.bundle, ()))

    @property
    def loras(self) -> tuple[Lora, ...]:
        """The LoRA files that act, in their order."""
        return self._models.changes.loras

    def load_weights(self, component: str, path: str | Path) -> None:
        """Another checkpoint's weights for a component, of the same shape; a LoRA stays over them.

        `path` is a safetensors file or a folder of them, in diffusers' layout or an original one, and must stay while
        the pipeline is open.

        Raises:
            SourceError: a file is missing, damaged, quantised, incomplete or of another shape; nothing has changed.
            BundleError: the bundle lacks the component.
            RequestError, BackendError: see `load_lora`.
        """
        self._models.change_weights(lambda changes: changes.with_tune(self.bundle, component, path))

    def unload_weights(self, component: str) -> None:
        """The bundle's own weights for a component again, to the bit; a LoRA stays over them.

        Raises:
            BundleError: the bundle lacks the component.
            RequestError, BackendError: see `load_lora`.
        """
        self._models.change_weights(lambda changes: changes.without_tune(self.bundle, component))

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
            with self._models.request():
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


def _asked(signature: inspect.Signature, pipeline: Pipeline, first: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters by name; a TypeError for what the method lacks."""
    asked = dict(signature.bind(pipeline, first, **parameters).arguments)
    del asked["self"]
    return asked


def _existing(part: T | None, asked: str) -> T:
    """A part that not every family has.

    Raises:
        RequestError: the bundle's has not.
    """
    if part is None:
        raise RequestError(
            f"{asked} with a model of a family without latent upsamplers",
            expected="a family that has them, such as ltx-video",
            fix="Generate at the size that is wanted.",
        )
    return part


def _rate(output: Output, request: Request | UpscaleRequest) -> float:
    rate = output.frame_rate or request.frame_rate
    assert rate is not None
    return rate


_GENERATE = inspect.signature(Pipeline.generate)
_UPSCALE = inspect.signature(Pipeline.upscale)
