"""This runtime as a competitor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import telecine
from telecine.bench.settings import Settings

PACKAGES = ("telecine", "numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers")


class Telecine:
    """A bundle's pipeline."""

    name = "telecine"

    def __init__(self, bundle: Path, *, threads: int, device: str = "auto") -> None:
        options = telecine.OnnxRuntimeOptions(threads=threads)
        self._pipe = telecine.load(bundle, device=device, options=options)

    def generate(self, settings: Settings, mark: Callable[[], None]) -> Mapping[str, float]:
        def callback(*_: Any) -> None:
            mark()

        return self._pipe.generate(**settings.request(), seed=settings.seed, callback=callback).timings

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
