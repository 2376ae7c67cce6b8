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


class Diffusers:
    """A source's pipeline; `compiled` runs transformer and decoder through torch.compile."""

    def __init__(self, source: str, *, threads: int, precision: str = "fp32", compiled: bool = False) -> None:
        torch.set_num_threads(threads)
        self.name = "torch.compile" if compiled else "diffusers"
        self._pipe: Any = DiffusionPipeline.from_pretrained(
            source, dtype=DTYPES[precision], use_safetensors=True, local_files_only=True
        )
        self._pipe.set_progress_bar_config(disable=True)
        if compiled:
            for module in (self._pipe.transformer, self._pipe.vae.decoder):
                module.forward = torch.compile(module.forward)
        self._stages = _Stages()
        self._stages.watch(self._pipe.transformer)
        # Frames are made of what the decoder gives in `postprocess_video`: that is decoding, as it is ours.
        for owner, method, stage in (
            (self._pipe, "encode_prompt", "text"),
            (self._pipe.vae, "decode", "decode"),
            (self._pipe.video_processor, "postprocess_video", "decode"),
        ):
            setattr(owner, method, self._stages.timed(getattr(owner, method), stage))

    def generate(self, settings: Settings, mark: Callable[[], None]) -> Mapping[str, float]:
        def callback(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            self._stages.step_ends()
            mark()
            return values

        self._stages.begin()
        generator = torch.Generator("cpu").manual_seed(settings.seed)
        self._pipe(**settings.request(), generator=generator, callback_on_step_end=callback)
        return self._stages.seconds

    def versions(self) -> Mapping[str, str]:
        return installed_versions(PACKAGES)


class _Stages:
    """Wall seconds by stage of one generation; "denoise" is from the network's first call to the last step's end."""

    def __init__(self) -> None:
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
        self.seconds["denoise"] = time.perf_counter() - self._first_call

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self._add(stage, start)

        return run

    def _call_begins(self) -> None:
        self._call = time.perf_counter()
        self._first_call = self._call if self._first_call is None else self._first_call

    def _add(self, stage: str, start: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
