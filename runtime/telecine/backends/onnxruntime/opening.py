"""Which kind of session a graph gets from ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from telecine.backends.base import Session
from telecine.backends.onnxruntime.library import load_onnxruntime
from telecine.backends.onnxruntime.options import OnnxRuntimeOptions
from telecine.backends.onnxruntime.providers import ON_CUDA, check_precision, choose_providers
from telecine.backends.onnxruntime.session import OnnxRuntimeSession
from telecine.manifest import Graph


def open_session(
    graph: Graph,
    path: Path,
    *,
    device: str,
    options: OnnxRuntimeOptions,
    precision: str = "fp32",
    stream: int | None = None,
    prepack: bool = True,
    cuda_graphs: bool = False,
) -> Session:
    """A session on arrays of the GPU where the first provider is CUDA's or TensorRT's, else on the host's.

    `path` and `precision` are those of the graph's file and of its component. `stream` is a CUDA stream's handle, for
    all work of a session on a GPU; None makes one. `prepack` is for the CPU's provider, `cuda_graphs` for CUDA's.

    Raises:
        BackendError: as `OnnxRuntimeSession.load`; there is no such GPU, or no cuda-bindings.
    """
    providers = choose_providers(load_onnxruntime(), device, options)
    if providers[0] not in ON_CUDA:
        return OnnxRuntimeSession.load(
            graph, path, device=device, options=options, precision=precision, prepack=prepack
        )
    # Here: a run on the CPU, which is to start quickly, needs nothing of CUDA.
    from telecine.backends.cuda.device import Device
    from telecine.backends.onnxruntime.cuda_network import CudaNetwork
    from telecine.backends.onnxruntime.cuda_session import OnnxRuntimeCudaSession

    check_precision(path, precision, providers[0])
    place = Device.open(device)
    return OnnxRuntimeCudaSession(
        graph, CudaNetwork(path, options, precision, providers, place, stream=stream, cuda_graphs=cuda_graphs)
    )
