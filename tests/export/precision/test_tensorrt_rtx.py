"""Graphs of every precision parse and build with TensorRT for RTX, with free sizes, on a machine with no GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from telecine.bundle import Bundle
from telecine.manifest import Graph

trt: Any = pytest.importorskip("tensorrt_rtx")

# (least, best, largest) of each axis.
SIZES = {
    "batch": (1, 2, 3), "tokens": (1, 27, 128), "text_length": (1, 64, 256), "timestep_tokens": (1, 1, 128),
    "rope_positions": (1, 8, 32), "latent_frames": (2, 3, 4), "latent_height": (2, 3, 4), "latent_width": (2, 3, 4),
}  # fmt: skip


def dims(shape: tuple[int | str, ...], which: int) -> tuple[int, ...]:
    found = [re.fullmatch(r"(?:(\d+)\*)?([a-z_]+)(?:-(\d+))?", str(size)) for size in shape]
    return tuple(
        int(size) if rule is None else int(rule[1] or 1) * SIZES[rule[2]][which] - int(rule[3] or 0)
        for size, rule in zip(shape, found, strict=True)
    )


def build(path: Path, graph: Graph, capability: str) -> int:
    """Bytes of the plan."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)  # strongly typed, as all of TensorRT for RTX's are
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    profile = builder.create_optimization_profile()
    for spec in graph.inputs:
        profile.set_shape(spec.name, *(dims(spec.shape, which) for which in range(3)))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return int(plan.nbytes)


@pytest.mark.parametrize("capability", ["SM89", "SM120"])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8"])
def test_the_text_encoder_builds(precision: str, capability: str, demo_bundles: Path) -> None:
    bundle = Bundle.open(demo_bundles / precision)
    graph = bundle.graph("text_encoder")
    assert build(bundle.path(graph.file), graph, capability) > 0


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["SM89", "SM120"])
@pytest.mark.parametrize("component", ["transformer", "vae_encoder", "vae_decoder"])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8"])
def test_every_component_builds(precision: str, component: str, capability: str, demo_bundles: Path) -> None:
    bundle = Bundle.open(demo_bundles / precision)
    graph = bundle.graph(component)
    assert build(bundle.path(graph.file), graph, capability) > 0
