"""This runtime as a competitor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import telecine
from telecine.backends.base import Session
from telecine.backends.cuda.options import CudaGraphs
from telecine.bench.settings import Settings

PACKAGES = (
    "telecine", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-bindings", "tokenizers",
)  # fmt: skip


class Telecine:
    """A bundle's pipeline. `backend`, `engines` and `cuda_graphs` are `telecine.load`'s, `providers` its options';
    `prompts` are embeddings in place of the settings' prompts, as `generate` takes them.
    """

    def __init__(
        self, bundle: Path, *, threads: int, device: str = "auto", name: str = "telecine", backend: str = "auto",
        engines: Path | None = None, cuda_graphs: CudaGraphs = "auto", prompts: Mapping[str, Any] | None = None,
        providers: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.name, self._prompts = name, prompts
        options = (
            None if backend == "tensorrt" else telecine.OnnxRuntimeOptions(threads=threads, providers=providers or None)
        )
        self.pipe = telecine.load(
            bundle, backend=backend, device=device, engines=engines, options=options, cuda_graphs=cuda_graphs,
            prompt_cache=0,  # the prompts are the same every time, and nobody else keeps them
        )  # fmt: skip

    def generate(self, settings: Settings, mark: Callable[[], None]) -> Mapping[str, float]:
        def callback(*_: Any) -> None:
            mark()

        request = settings.request(self._prompts)
        return self.pipe.generate(**request, seed=settings.seed, callback=callback).timings

    def network(self, component: str) -> Session:
        """A network's session, loaded."""
        return self.pipe._models.session(component)

    def close(self) -> None:
        self.pipe.close()

    def versions(self) -> Mapping[str, str]:
        return installed_versions(PACKAGES)


def installed_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of those of the packages that are installed."""
    return {package: found for package in packages if (found := _version(package))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
