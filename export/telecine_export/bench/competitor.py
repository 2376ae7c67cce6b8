"""diffusers' own pipeline as a competitor, timed through hooks on its parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline

from telecine.bench.ours import installed_versions
from telecine.bench.settings import Settings

PACKAGES = ("diffusers", "torch", "transformers")
# Of fp8, diffusers has bf16.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}
# What of a pipeline is timed as which stage. Frames are made of what the decoder gives in `postprocess_video`: that is
# decoding, as it is ours.
PARTS = (
    ("connectors", "forward", "text"),
    ("vae", "decode", "decode"),
    ("video_processor", "postprocess_video", "decode"),
    ("audio_vae", "decode", "sound"),
    ("vocoder", "forward", "sound"),
)


def open_pipeline(source: str, precision: str = "fp32") -> Any:
    """A source's pipeline in the dtype of a precision, on the CPU."""
    return DiffusionPipeline.from_pretrained(
        source, dtype=DTYPES[precision], use_safetensors=True, local_files_only=True
    )


class Diffusers:
    """A pipeline of diffusers; `compiled` runs transformer and decoder through torch.compile.

    On a GPU every stage ends when the device has done it. `prompts` are embeddings in place of the settings' prompts.
    """

    def __init__(
        self, pipe: Any, *, threads: int, device: str = "cpu", compiled: bool = False,
        prompts: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        torch.set_num_threads(threads)
        self.name = "torch.compile" if compiled else "diffusers"
        self._prompts = prompts
        on_gpu = device.startswith("cuda")
        self._pipe = pipe.to(device) if on_gpu else pipe
        self._pipe.set_progress_bar_config(disable=True)
        if compiled:
            for module in (self._pipe.transformer, self._pipe.vae.decoder):
                module.forward = torch.compile(module.forward)
        self._stages = _Stages(torch.cuda.synchronize if on_gpu else _nothing)
        self._stages.watch(self._pipe.transformer)
        self._pipe.encode_prompt = self._stages.timed(self._pipe.encode_prompt, "text")
        for name, method, stage in PARTS:
            part = getattr(self._pipe, name, None)
            if part is not None:
                setattr(part, method, self._stages.timed(getattr(part, method), stage))

    def generate(self, settings: Settings, mark: Callable[[], None]) -> Mapping[str, float]:
        def callback(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            self._stages.step_ends()
            mark()
            return values

        self._stages.begin()
        generator = torch.Generator("cpu").manual_seed(settings.seed)
        self._pipe(**settings.request(self._prompts), generator=generator, callback_on_step_end=callback)
        return self._stages.seconds

    def versions(self) -> Mapping[str, str]:
        return installed_versions(PACKAGES)


class _Stages:
    """Wall seconds by stage of one generation; "denoise" is from the network's first call to the last step's end."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait  # until a GPU has done what it was given
        self.begin()

    def begin(self) -> None:
        self.seconds: dict[str, float] = {}
        self._first_call: float | None = None
        self._call = 0.0

    def watch(self, network: torch.nn.Module) -> None:
        network.register_forward_pre_hook(lambda *_: self._call_begins())
        network.register_forward_hook(lambda *_: self._add("network", self._call))

    def step_ends(self) -> None:
        assert self._first_call is not None
        self._wait()
        self.seconds["denoise"] = time.perf_counter() - self._first_call

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            self._wait()
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self._add(stage, start)

        return run

    def _call_begins(self) -> None:
        self._wait()
        self._call = time.perf_counter()
        self._first_call = self._call if self._first_call is None else self._first_call

    def _add(self, stage: str, start: float) -> None:
        self._wait()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def _nothing() -> None:
    """The CPU is done when a call returns."""
