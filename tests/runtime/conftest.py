"""What tests of whole videos share."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import telecine
from telecine.bundle import Bundle
from telecine.manifest import FILE_NAME
from telecine.pipeline import Pipeline


@pytest.fixture(scope="session")
def plain_reference(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """On the graphs that the doubles run, and not on those that ONNX Runtime's CPU provider has beside them."""
    bundle = tmp_path_factory.mktemp("reference") / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    manifest = Bundle.open(bundle).manifest
    components = {
        name: dataclasses.replace(
            part,
            graphs={role: dataclasses.replace(graph, onnxruntime_cpu=None) for role, graph in part.graphs.items()},
        )
        for name, part in manifest.components.items()
    }
    (bundle / FILE_NAME).write_text(dataclasses.replace(manifest, components=components).dump())
    with telecine.load(bundle, backend="onnxruntime") as pipe:
        yield pipe
