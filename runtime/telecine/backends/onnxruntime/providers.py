"""Execution providers: those of a device, and what each is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from telecine.backends.onnxruntime.options import OnnxRuntimeOptions
from telecine.errors import BackendError

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# Those that take arrays where CUDA has them, and a stream.
ON_CUDA = (CUDA, TENSORRT)
# What a provider has no kernels for, by precision (tried with ONNX Runtime 1.31: of bfloat16, the CPU's has
# only what moves values). Its fp16 kernels are few, but it casts around the others.
MISSING_KERNELS: Mapping[str, tuple[str, ...]] = {CPU: ("bf16",)}


def choose_providers(ort: Any, device: str, options: OnnxRuntimeOptions) -> tuple[str, ...]:
    """Names of the execution providers for a device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        BackendError: this ONNX Runtime lacks one.
    """
    available = ort.get_available_providers()
    wanted = options.providers or ()
    if not wanted and device.partition(":")[0] == "cuda":
        if CUDA not in available:
            raise BackendError(
                f"device {device} with an ONNX Runtime that has {', '.join(available)}",
                expected=CUDA,
                fix='Run: pip uninstall onnxruntime; pip install "telecine[onnxruntime-gpu]"',
            )
        wanted = (CUDA, CPU)
    wanted = wanted or (CPU,)
    unknown = [name for name in wanted if name not in available]
    if unknown:
        raise BackendError(
            f"execution provider {', '.join(unknown)}",
            expected=f"one of {', '.join(available)}",
            fix="Install the onnxruntime package that has it, or name another.",
        )
    misplaced = [*sorted(set(options.provider_options) - set(wanted)), *([] if CUDA in wanted else options.of_cuda())]
    if misplaced:
        raise BackendError(
            f"options of {', '.join(misplaced)} on {', '.join(wanted)}",
            expected="options that act there",
            fix="Leave them out, or use device='cuda'.",
        )
    return tuple(wanted)


def with_options(name: str, options: OnnxRuntimeOptions, own: Mapping[str, Any]) -> Any:
    """A provider as InferenceSession takes it: its name, with the caller's options and our `own` where there are any.

    ONNX Runtime takes every value as text.
    """
    values = {**own, **options.provider_options.get(name, {})}
    return (name, {key: _text(value) for key, value in values.items()}) if values else name


def cuda_options(
    name: str, options: OnnxRuntimeOptions, *, device: int, stream: int, cuda_graphs: bool, precision: str
) -> dict[str, Any]:
    """What a provider is told; nothing for those that know no CUDA.

    With a stream of ours ONNX Runtime enqueues all of a session's work on it, and no call waits for it:
    https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html. Its arena grows by what is asked for,
    not by powers of two: the sizes of videos differ by much, and a GPU has room for few of them.
    """
    place = {"device_id": device, "user_compute_stream": stream}
    if name == CUDA:
        limit = {} if options.gpu_mem_limit is None else {"gpu_mem_limit": options.gpu_mem_limit}
        return {
            **place,
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": options.cudnn_conv_algo_search,
            "use_tf32": options.use_tf32,
            "enable_cuda_graph": cuda_graphs,
            **limit,
        }
    if name == TENSORRT:
        return {**place, "trt_fp16_enable": precision == "fp16", "trt_bf16_enable": precision == "bf16"}
    return {}


def check_precision(path: Path, precision: str, provider: str) -> None:
    """
    Raises:
        BackendError: the provider has no kernels for it.
    """
    if precision in MISSING_KERNELS.get(provider, ()):
        raise BackendError(
            f"{path.parent.name} is {precision}, on {provider}",
            expected=f"fp32, fp16 or fp8: ONNX Runtime has no {precision} kernels there",
            fix="Export the bundle at fp16 or fp32 (--precision, --component), or run this one on a GPU.",
        )


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
