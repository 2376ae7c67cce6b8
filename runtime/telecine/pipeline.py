"""`load` a bundle, `generate` a video, `save` it."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

from telecine.backends.base import out_of_memory
from telecine.backends.onnxruntime import OnnxRuntimeOptions
from telecine.bundle import Bundle
from telecine.denoise import Callback
from telecine.errors import BackendError, RequestError
from telecine.families import FAMILIES
from telecine.families.base import Output, PipelineSpec
from telecine.models import LoadedModels
from telecine.request import Request
from telecine.results import FrameStream, Result, stopwatch

BACKENDS = ("auto", "onnxruntime")


def load(
    path: str | Path,
    *,
    backend: str = "auto",
    device: str = "auto",
    options: OnnxRuntimeOptions | None = None,
) -> Pipeline:
    """Open a bundle on a backend. Networks load when a request first needs them.

    `backend` is "auto" or "onnxruntime"; `device` is "auto" (the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        BundleError: the bundle is missing, damaged, edited, or of a family that this telecine does not know.
        BackendError: an unknown backend or device.
    """
    if backend not in BACKENDS:
        raise BackendError(
            f"backend {backend!r}",
            expected=f"one of {', '.join(BACKENDS)}",
            fix="Use 'onnxruntime': TensorRT is not part of this version.",
        )
    kind, colon, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and (kind != "cuda" or not index.isdecimal())):
        raise BackendError(f"device {device!r}", expected="auto, cpu, cuda or cuda:N", fix="Use 'cpu'.")
    return Pipeline(LoadedModels(Bundle.open(path), device=device, options=options or OnnxRuntimeOptions()))


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
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        num_videos_per_prompt: int | None = None,
        seed: int | Sequence[int] | None = None,
        latents: npt.NDArray[Any] | None = None,
        prompt_embeds: npt.NDArray[Any] | None = None,
        prompt_attention_mask: npt.NDArray[Any] | None = None,
        negative_prompt_embeds: npt.NDArray[Any] | None = None,
        negative_prompt_attention_mask: npt.NDArray[Any] | None = None,
        decode_timestep: float | Sequence[float] | None = None,
        decode_noise_scale: float | Sequence[float] | None = None,
        output_type: str | None = None,
        max_sequence_length: int | None = None,
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
        each step and may return new latents, or False to stop the run.

        `memory_limit` (bytes, or "8GiB") is what decoding may add to the loaded networks and to the frames that are
        done; it chooses tiles. `tiling` is "auto", "off", "seamless" or "diffusers"; sizes of tiles are in pixels and
        frames, context included.

        Raises:
            RequestError: a parameter is wrong, or another request is running.
            BundleError: the bundle lacks what the request needs.
            BackendError: a network could not be loaded or run, or memory ran out.
            Cancelled: the callback stopped the run.
        """
        asked = dict(locals())  # first of all: it holds the parameters and nothing else
        for name in ("self", "pipeline", "preset", "callback"):
            del asked[name]
        return self._result(*self._resolve(asked, pipeline, preset), callback)

    def stream(self, prompt: str | Sequence[str] | None = None, **parameters: Any) -> FrameStream:
        """The frames of `generate`, bit for bit, in pieces along time: each is decoded when it is asked for.

        Takes the parameters of `generate`. The denoising is done when this returns. Pieces are shorter than the video
        where `memory_limit` or `tiling` cut it in time. The pipeline is busy until the last piece is out, or the
        stream is closed.

        Raises:
            RequestError: as `generate`; or `output_type` is "latent".
            BundleError, BackendError, Cancelled: as `generate`.
        """
        asked = dict(_GENERATE.bind(self, prompt, **parameters).arguments)  # a TypeError for what generate lacks
        del asked["self"]
        pipeline, preset, callback = (asked.pop(name, None) for name in ("pipeline", "preset", "callback"))
        spec, request = self._resolve(asked, pipeline, preset)
        if request.output_type == "latent":
            raise RequestError("a stream of latents", expected="frames", fix="Use generate for output_type='latent'.")
        timings: dict[str, float] = {}
        run = self._run(spec, request, timings, callback)
        return FrameStream(run, next(run), request.frame_rate, timings)

    def _resolve(
        self, asked: Mapping[str, Any], pipeline: str | None, preset: str | None
    ) -> tuple[PipelineSpec, Request]:
        self._models.check_open()
        spec = self._pipeline(pipeline)
        return spec, Request.resolve(asked, self._preset(preset), spec.defaults)

    def _result(self, spec: PipelineSpec, request: Request, callback: Callback | None) -> Result:
        timings: dict[str, float] = {}
        run = self._run(spec, request, timings, callback)
        output: Output = next(run)
        with closing(run):
            decoded = None
            if output.frames is not None:
                decoded = FrameStream(run, output, request.frame_rate, timings).whole()
        return Result(
            frames=decoded,
            latents=output.latents,
            frame_rate=request.frame_rate,
            seeds=output.seeds,
            timings=timings,
        )

    def _run(
        self, spec: PipelineSpec, request: Request, timings: dict[str, float], callback: Callback | None
    ) -> Generator[Any, None, None]:
        """First the run's `Output`, then its frames in pieces. Closed or dropped, it lets the next request in."""
        stage = stopwatch(timings)
        with stage("total"), self._running():
            output = spec.run(self._models, request, stage=stage, callback=callback)
            yield output
            while output.frames is not None:
                with stage("decode"):
                    piece = next(output.frames.pieces, None)
                if piece is None:
                    return
                yield piece
                del piece  # or it would live on while the next one is made

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

    def _pipeline(self, name: str | None) -> PipelineSpec:
        pipelines = FAMILIES[self.bundle.manifest.family].pipelines
        wanted = name or self.bundle.manifest.pipeline
        if wanted not in pipelines:
            by = "asked for" if name else f"what {self.bundle.root} was exported from"
            raise RequestError(
                f"pipeline {wanted} ({by})",
                expected=f"one of {', '.join(pipelines)}",
                fix=f"Pass pipeline={next(iter(pipelines))!r}; its host math differs from {wanted}'s.",
            )
        return pipelines[wanted]

    def _preset(self, name: str | None) -> Mapping[str, Any]:
        presets = self.bundle.manifest.presets
        if name is not None and name not in presets:
            raise RequestError(
                f"preset {name!r}", expected=f"one of {', '.join(presets)}", fix="telecine inspect lists them."
            )
        return presets[name] if name else {}


_GENERATE = inspect.signature(Pipeline.generate)
