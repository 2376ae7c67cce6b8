"""What can be set of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from telecine.errors import BackendError

# Beyond any machine: ONNX Runtime starts whatever number it is told.
MAX_THREADS = 1024
CONVOLUTION_SEARCHES = ("HEURISTIC", "EXHAUSTIVE", "DEFAULT")
# What telecine sets by itself, from `device` and `cuda_graphs`.
OWN_OPTIONS = (
    "device_id", "has_user_compute_stream", "user_compute_stream", "enable_cuda_graph", "trt_cuda_graph_enable",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRuntimeOptions:
    """Settings of ONNX Runtime sessions.

    `providers`: execution providers in order of preference; None lets `device` choose. `threads`: of one operator;
    None is ONNX Runtime's choice, a thread a physical core. `memory_arena`: keep freed CPU memory for the next call
    (faster; off gives it back). `memory_pattern`: plan allocations by shape (faster for repeated sizes).

    Of the CUDA provider: `gpu_mem_limit`, bytes that each network's arena may hold, weights included; None is no limit.
    `cudnn_conv_algo_search`: "HEURISTIC" asks cuDNN, "EXHAUSTIVE" tries every algorithm at every new size, which pays
    where many videos have one size. `use_tf32`: multiply float32 with 10 bits of mantissa (faster, no longer fp32).
    `provider_options`: more options by provider and name, such as
    {"TensorrtExecutionProvider": {"trt_engine_cache_enable": True}}.
    """

    providers: tuple[str, ...] | None = None
    threads: int | None = None
    memory_arena: bool = True
    memory_pattern: bool = True
    gpu_mem_limit: int | None = None
    cudnn_conv_algo_search: str = "HEURISTIC"
    use_tf32: bool = False
    provider_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.providers, str):
            raise BackendError(
                f"providers is {self.providers!r}",
                expected="a tuple of names",
                fix=f"Pass providers=({self.providers!r},).",
            )
        if self.threads is not None and not _whole(self.threads, MAX_THREADS):
            raise BackendError(
                f"threads is {self.threads!r}",
                expected=f"a whole number from 1 to {MAX_THREADS}, or None",
                fix="Leave it out for a thread a physical core.",
            )
        if self.gpu_mem_limit is not None and not _whole(self.gpu_mem_limit, 1 << 62):
            raise BackendError(
                f"gpu_mem_limit is {self.gpu_mem_limit!r}", expected="bytes, or None", fix="Use 8 << 30 for 8 GiB."
            )
        if self.cudnn_conv_algo_search not in CONVOLUTION_SEARCHES:
            raise BackendError(
                f"cudnn_conv_algo_search is {self.cudnn_conv_algo_search!r}",
                expected=f"one of {', '.join(CONVOLUTION_SEARCHES)}",
                fix="Leave it out.",
            )
        own = sorted({name for options in self.provider_options.values() for name in options} & set(OWN_OPTIONS))
        if own:
            raise BackendError(
                f"provider_options sets {', '.join(own)}",
                expected="options that telecine does not set itself",
                fix="Use device= and cuda_graphs= of telecine.load.",
            )

    def of_cuda(self) -> list[str]:
        """What is set for the CUDA provider alone."""
        defaults = {each.name: each.default for each in fields(self)}
        names = ("gpu_mem_limit", "cudnn_conv_algo_search", "use_tf32")
        return [name for name in names if getattr(self, name) != defaults[name]]


def _whole(number: object, most: int) -> bool:
    return type(number) is int and 1 <= number <= most
