"""Tiny transformers of LTX-2, exported alone."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from telecine.manifest import FILE_NAME, FORMAT, FileEntry, Graph, Manifest

# fp8 with one scale for all activations: calibrating is the bundle's.
PRECISIONS: dict[str, tuple[str, ...]] = {
    "2.3": ("fp32", "fp16", "bf16", "fp8"),
    "2.0": ("fp32", "fp8"),
    "interleaved": ("fp32",),
}
AMAX = 16.0


class Exported(NamedTuple):
    """The pipeline's folder, the transformer's graph, and the graph's file."""

    source: Path
    graph: Graph
    path: Path


@pytest.fixture(scope="session")
def ltx2_transformer_source(shared: Callable[..., Path]) -> Callable[[str], Path]:
    """`ltx2_transformer_source("2.3")`: a pipeline's folder with a tiny transformer alone. Read only.

    "interleaved" is of 2.3 with the other kind of rotary embeddings, and one block.
    """
    return lambda style: shared(f"ltx2-{style}-transformer-source", lambda path: save_source(path, style))


@pytest.fixture(scope="session")
def ltx2_transformer(
    shared: Callable[..., Path], ltx2_transformer_source: Callable[[str], Path]
) -> Callable[..., Exported]:
    """`ltx2_transformer("2.3", "fp16")`: the transformer of such a folder at a precision, of one trace. Read only."""

    def get(style: str, precision: str = "fp32") -> Exported:
        source = ltx2_transformer_source(style)
        folder = shared(f"ltx2-{style}-transformer", lambda path: _export(source, path, PRECISIONS[style]))
        home = folder / precision
        manifest = Manifest.parse((home / FILE_NAME).read_text(), where=str(home))
        graph = manifest.components["transformer"].graphs["main"]
        return Exported(source, graph, home / graph.file.path)

    return get


def _export(source: Path, folder: Path, precisions: Sequence[str]) -> None:
    from telecine_export.export import Progress, export_component
    from telecine_export.families.ltx2 import transformer
    from telecine_export.families.ltx2.precision import TRANSFORMER
    from telecine_export.precision.typed import Traces
    from telecine_export.source import open_source

    opened, traces = open_source(str(source)), Traces(23)
    for precision in precisions:
        home = folder / precision
        home.mkdir(parents=True)
        component = export_component(
            opened,
            home,
            [transformer.spec(opened)],
            precision=precision,
            opset=23,
            progress=Progress(),
            policy=TRANSFORMER,
            amax={"main": defaultdict(lambda: AMAX)},
            traces=traces,
        )
        manifest = Manifest(
            format=FORMAT, family="ltx-2", variant="", pipeline="LTX2Pipeline", host={}, presets={}, versions={},
            components={"transformer": component}, tokenizer=FileEntry(path="none", size=0, sha256=""),
        )  # fmt: skip
        (home / FILE_NAME).write_text(manifest.dump())


def save_source(folder: Path, style: str) -> None:
    make: Any = importlib.import_module("make_tiny_ltx2").tiny_ltx2_transformer
    config: dict[str, Any] = {}
    if style == "interleaved":
        style, config = "2.3", {"rope_type": "interleaved", "rope_double_precision": False, "num_layers": 1}
    model = make(style=style, seed=3, **config)
    with torch.no_grad():  # modulations of 0 would hide what the network is told
        for name, parameter in model.named_parameters():
            if "scale_shift_table" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(folder / "transformer")
    (folder / "model_index.json").write_text('{"_class_name": "LTX2Pipeline"}')
