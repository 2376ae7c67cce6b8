"""LTX-2's transformer builds with TensorRT for RTX at every precision and for free sizes; no GPU is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from telecine.axes import resolve

trt: Any = pytest.importorskip("tensorrt_rtx")

# (least, best, largest) of each axis.
SIZES = {
    "batch": (1, 1, 2), "tokens": (1, 27, 128), "audio_tokens": (1, 9, 40), "text_length": (1, 32, 128),
    "timestep_tokens": (1, 1, 128), "cross_timestep_tokens": (1, 1, 128), "rope_positions": (1, 8, 32),
}  # fmt: skip
# TensorRT's name of each precision's tensors.
COMPUTED_IN = {"fp16": "HALF", "bf16": "BF16", "fp8": "FP8"}


def marked(*values: str, fast: bool) -> object:
    return pytest.param(*values, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize(
    ("style", "precision", "capability"),
    [
        marked("2.3", "fp16", "SM89", fast=True),
        marked("2.3", "bf16", "SM120", fast=True),
        marked("2.3", "fp8", "SM89", fast=False),  # tests/engines/test_build_ltx2.py builds one, with all else
        marked("2.0", "fp8", "SM120", fast=False),
    ],
)
def test_it_builds(style: str, precision: str, capability: str, ltx2_transformer: Callable[..., Any]) -> None:
    exported = ltx2_transformer(style, precision)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)  # strongly typed, as all of TensorRT for RTX's are
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(exported.path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    types = Counter(layer.get_output(0).dtype.name for layer in layers if layer.num_outputs)
    assert types[COMPUTED_IN[precision]] > 50, types
    assert sum(layer.type == trt.LayerType.ATTENTION_INPUT for layer in layers) == 6 * 2
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    profile = builder.create_optimization_profile()
    for spec in exported.graph.inputs:
        ends = (resolve(spec, {name: sizes[end] for name, sizes in SIZES.items()}) for end in range(3))
        profile.set_shape(spec.name, *ends)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert plan.nbytes > 0
