"""The graph for ONNX Runtime's CPU against the one that it is made of."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from telecine.axes import resolve
from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.bundle import Bundle
from telecine.rope import grid_index, make_tables, video_positions
from telecine.shapes import Grid, LatentShape
from telecine_export.onnxruntime_cpu import DOMAIN, for_onnxruntime_cpu

# Of one call of the network, on values near 1: both graphs sum the same products, in other orders.
TOLERANCE = 1e-5


def session(bundle: Path, *, own: bool) -> OnnxRuntimeSession:
    opened = Bundle.open(bundle)
    graph = opened.graph("transformer")
    path = opened.path(graph.file)
    graph = graph if own else dataclasses.replace(graph, onnxruntime_cpu=None)
    return OnnxRuntimeSession.load(graph, path, device="cpu", options=OnnxRuntimeOptions())


def feeds(host: dict[str, Any], batch: int, latent: LatentShape, timestep_tokens: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(latent.tokens)
    grid = Grid(spatial=host["spatial_ratio"], temporal=host["temporal_ratio"])
    frequencies = np.array(host["rope_frequencies"], np.float32)
    rope = make_tables(video_positions(latent, grid, 25.0), grid_index(latent), frequencies)
    mask = np.ones((batch, 7), np.float32)
    mask[-1, 3:] = 0
    return {
        "hidden_states": random.standard_normal((batch, latent.tokens, host["latent_channels"]), dtype=np.float32),
        "encoder_hidden_states": random.standard_normal((batch, 7, host["text_channels"]), dtype=np.float32),
        "encoder_attention_mask": mask,
        "timestep": random.uniform(0, 1000, (batch, timestep_tokens)).astype(np.float32),
        "rope_cos": rope.cos,
        "rope_sin": rope.sin,
        "rope_index": rope.index,
        "stg_mode": random.integers(0, 4, (host["transformer_blocks"], batch), dtype=np.int32),
    }


@pytest.mark.parametrize(
    ("batch", "size", "per_token"), [(2, (3, 4, 5), False), (1, (1, 1, 1), False), (3, (2, 7, 3), True)]
)
def test_both_graphs_compute_the_same(tiny_bundle: Path, batch: int, size: tuple[int, ...], per_token: bool) -> None:
    latent = LatentShape(frames=size[0], height=size[1], width=size[2])
    inputs = feeds(Bundle.open(tiny_bundle).manifest.host, batch, latent, latent.tokens if per_token else 1)
    with session(tiny_bundle, own=True) as own, session(tiny_bundle, own=False) as plain:
        got, expected = (each.run(inputs)["velocity"] for each in (own, plain))
    assert expected.std() > 0.05
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("style", ["2b", "1.5-5b"])
def test_heads_that_are_normed_and_rotated_are_joined_again(
    cogvideox: Callable[..., tuple[Path, Path]], style: str
) -> None:
    """CogVideoX norms, and but for 2b rotates, single heads."""
    _, bundle = cogvideox(style)
    batch, frames, rows, columns = 3, 2, 5, 3
    host, random = Bundle.open(bundle).manifest.host, np.random.default_rng(1)
    sizes = {"batch": batch, "frame_groups": frames, "rows": rows, "columns": columns, "text_length": 9}
    with session(bundle, own=True) as own, session(bundle, own=False) as plain:
        inputs = {
            name: random.standard_normal(resolve(spec, sizes), dtype=np.float32) for name, spec in plain.inputs.items()
        }
        got, expected = (each.run(inputs)["prediction"] for each in (own, plain))
    assert got.shape == (batch, frames * (host["patch_size_t"] or 1), host["latent_channels"], 2 * rows, 2 * columns)
    assert expected.std() > 0.05
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)
    graph = ir.load(bundle / "transformer" / "main.onnxruntime-cpu.onnx").graph
    operators = Counter(node.op_type for node in graph)
    assert operators["MultiHeadAttention"] == 2
    assert "Attention" not in operators


def test_the_cpu_provider_loads_it(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    class Recorded(onnxruntime.InferenceSession):
        def __init__(self, path: str, *arguments: Any, **options: Any) -> None:
            loaded.append(Path(path))
            super().__init__(path, *arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    for own in (True, False):
        session(tiny_bundle, own=own).close()
    assert loaded == [tiny_bundle / "transformer" / name for name in ("main.onnxruntime-cpu.onnx", "main.onnx")]


def test_its_operators_and_its_initializers(tiny_bundle: Path) -> None:
    main = ir.load(tiny_bundle / "transformer" / "main.onnx")
    own = for_onnxruntime_cpu(main)
    assert own is not None
    before, after = (Counter((node.domain, node.op_type) for node in model.graph) for model in (main, own))
    blocks = 2
    assert after[DOMAIN, "MultiHeadAttention"] == blocks  # of the self-attention; the one over text has a bias
    assert after["", "Attention"] == before["", "Attention"] - blocks
    assert after[DOMAIN, "RotaryEmbedding"] == 2 * blocks
    weights = {name for name, value in main.graph.initializers.items() if "." in name and value.shape != ()}
    assert weights <= set(own.graph.initializers)
    assert not any(node.domain == DOMAIN for node in main.graph)  # what TensorRT builds is as it was


def test_a_network_without_such_parts_has_no_second_graph(tiny_bundle: Path) -> None:
    assert for_onnxruntime_cpu(ir.load(tiny_bundle / "vae_decoder" / "main.onnx")) is None
    graphs = {name: part.graphs["main"] for name, part in Bundle.open(tiny_bundle).manifest.components.items()}
    assert [name for name, graph in graphs.items() if graph.onnxruntime_cpu] == ["transformer"]
