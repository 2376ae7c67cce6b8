"""The float32 bundle that precisions are measured against and calibrated on: a given one, or one for the while."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from telecine.bundle import Bundle
from telecine.errors import BundleError, RequestError
from telecine.graph_weights import GraphWeights
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source

MEMORY = Path("/proc/meminfo")


@contextmanager
def reference_bundle(
    given: Path | None, source: Source, specs: Sequence[GraphSpec], folder: Path, export: Callable[[Path], Bundle]
) -> Iterator[Bundle]:
    """The bundle at `given`, or what `export` makes in a temporary folder inside of `folder`, which is itself one.

    Raises:
        BundleError: the given bundle is of another model, or not fp32.
        RequestError: this machine has too little memory or disk for the model at fp32.
    """
    _check_room(_size(source, specs), folder, disk=given is None)
    if given is not None:
        bundle = Bundle.open(given)
        _check_same(bundle, source, specs)
        yield bundle
        return
    with tempfile.TemporaryDirectory(prefix="reference-", dir=folder) as temporary:
        yield export(Path(temporary) / "fp32")


def _size(source: Source, specs: Sequence[GraphSpec]) -> int:
    """Bytes of a source's weights at float32."""
    size = 0
    for name in dict.fromkeys(spec.checkpoint for spec in specs):
        with source.checkpoint(name) as checkpoint:
            for tensor in checkpoint.names():
                count = 4
                for side in checkpoint.shape(tensor):
                    count *= side
                size += count
    return size


def _check_room(size: int, folder: Path, *, disk: bool) -> None:
    fix = "Use a larger machine, or --no-gate (fp8 is calibrated at fp32 all the same)."
    free = shutil.disk_usage(folder).free
    if disk and size > free:
        raise RequestError(
            f"the disk of {folder.parent} has {free / 1e9:.1f} GB left",
            expected=f"{size / 1e9:.1f} GB for a temporary copy of the model at fp32",
            fix=fix,
        )
    available = next(
        int(line.split()[1]) * 1024 for line in MEMORY.read_text().splitlines() if line.startswith("MemAvailable:")
    )
    if size > available:
        raise RequestError(
            f"this machine has {available / 1e9:.1f} GB of memory available",
            expected=f"{size / 1e9:.1f} GB to run the model at fp32, which precisions are measured against",
            fix=fix,
        )


def _check_same(bundle: Bundle, source: Source, specs: Sequence[GraphSpec]) -> None:
    components = {spec.component for spec in specs}
    manifest = bundle.manifest
    precisions = sorted({part.precision for part in manifest.components.values()})
    if set(manifest.components) != components or manifest.pipeline != source.pipeline_class or precisions != ["fp32"]:
        raise BundleError(
            f"{bundle.root} is a {manifest.pipeline} of {', '.join(manifest.components)} at {', '.join(precisions)}",
            expected=f"{source.root} at fp32: a {source.pipeline_class} of {', '.join(sorted(components))}",
            fix="Export the reference from the same source at fp32, or leave it out.",
        )
    for spec in specs:  # probes are put on the reference's graphs by the names of the traced ones
        names = GraphWeights.open(bundle, spec.component, spec.role).stored()
        if spec.fused != any(len(parts) > 1 for parts in names.values()):
            raise BundleError(
                f"{bundle.root} has a {spec.component} {'without' if spec.fused else 'with'} joined projections",
                expected=f"one {'with' if spec.fused else 'without'} them, as is exported",
                fix="Export the reference with the same --fuse-qkv, or leave it out.",
            )
