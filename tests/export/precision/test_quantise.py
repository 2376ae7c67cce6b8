"""FP8 in the graph: scales per channel, numbers that E4M3 has, names that refit finds, products that come out right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from demo_model.settings import CHECKPOINT
from onnx import TensorProto, numpy_helper
from safetensors.torch import load_file

from telecine_export.families.ltx_video import networks
from telecine_export.families.ltx_video.precision import POLICIES
from telecine_export.precision.channel_scales import ROWS, channel_scales, to_fp8
from telecine_export.precision.products import fp8_products
from telecine_export.precision.typed import Traces
from telecine_export.source import open_source
from telecine_export.trace import HEAD_SIZE

FP8 = TensorProto.FLOAT8E4M3FN


def naive_fp8(value: float) -> float:
    """The nearest number that E4M3 has, ties to the even one, saturating: found by looking at all of them."""
    numbers = np.arange(0, 127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    distances = np.abs(numbers - abs(value))
    nearest = np.flatnonzero(distances == distances.min())
    even = [index for index in nearest if index % 2 == 0]
    return float(np.copysign(numbers[even[0] if len(nearest) > 1 else nearest[0]], value))


def test_weights_are_rounded_to_e4m3_by_column() -> None:
    weight = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1.0, 300.0])
    scales = channel_scales(weight, torch.float16)
    numbers = to_fp8(weight, scales)
    for column in range(3):
        scale = float(scales[column])
        assert scale == pytest.approx(float(weight[:, column].abs().max()) / 448, rel=1e-3, abs=6.2e-5)
        for row in range(7):
            assert float(numbers[row, column]) == naive_fp8(float(weight[row, column]) / scale)


def test_scales_of_extremes() -> None:
    weight = torch.zeros(2 * ROWS + 3, 3)
    weight[-1, 1] = 65504.0  # in the last piece that is looked at
    weight[0, 2] = 1e-9
    scales = channel_scales(weight, torch.float16)
    numbers = to_fp8(weight, scales).float()
    assert torch.isfinite(numbers).all()  # one beyond 464 would be NaN in torch's cast
    assert float(numbers[-1, 1]) == 448.0
    assert not numbers[:, 0].any()
    assert (scales > 0).all()


@pytest.fixture(scope="module")
def stored(demo_bundles: Path) -> Callable[[str], tuple[onnx.ModelProto, dict[str, np.ndarray]]]:
    """A component of the demo bundle at fp8: its graph, and every initializer as NumPy."""

    def load(component: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        model = onnx.load(demo_bundles / "fp8" / component / "main.onnx")
        return model, {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}

    return load


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_stored_numbers_times_scales_are_the_checkpoint(component: str, stored: Callable[[str], Any]) -> None:
    model, arrays = stored(component)
    (file,) = (CHECKPOINT / component).glob("*.safetensors")
    checkpoint = load_file(file)
    names = [weight.name for weight in model.graph.initializer if weight.data_type == FP8]
    assert len(names) == {"transformer": 40, "text_encoder": 14}[component]
    for name in names:
        weight = checkpoint[name].float().numpy().T
        scale = arrays[f"{name}.scale"]
        assert scale.shape == (weight.shape[1],)
        float32 = component == "text_encoder" and name.endswith("wo.weight")
        assert scale.dtype == (np.float32 if float32 else np.float16)
        scale = scale.astype(np.float32)
        error = np.abs(arrays[name].astype(np.float32) * scale - weight)
        # Half a step of 3 bits, or half of the smallest number, in units of the scale.
        assert (error <= np.maximum(np.abs(weight) / 16 * 1.001, 2**-10 * 1.001 * scale)).all(), name


def test_blocks_at_the_ends_and_what_is_not_a_block_are_left(stored: Callable[[str], Any]) -> None:
    model, _ = stored("transformer")
    names = {weight.name for weight in model.graph.initializer if weight.data_type == FP8}
    assert {name.split(".")[1] for name in names if name.startswith("transformer_blocks")} == {"1", "2", "3", "4"}
    assert all(name.startswith("transformer_blocks") for name in names)


def test_attention_reads_fp8(stored: Callable[[str], Any]) -> None:
    model, _ = stored("transformer")
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    kinds = [[made_by[name] for name in node.input[:3]] for node in model.graph.node if node.op_type == "Attention"]
    assert kinds.count(["DequantizeLinear"] * 3) == 2 * 4  # two in each block between the ends
    assert len(kinds) == 2 * 6


def test_one_activation_is_quantised_once(stored: Callable[[str], Any]) -> None:
    model, _ = stored("transformer")
    inputs = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(inputs) == len(set(inputs))


def test_the_text_encoder_s_wo_keeps_its_activations(stored: Callable[[str], Any]) -> None:
    model, _ = stored("text_encoder")
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "MatMul" and made_by.get(node.input[1]) == "DequantizeLinear":
            weight = next(each.input[0] for each in model.graph.node if each.output[0] == node.input[1])
            assert (made_by[node.input[0]] == "DequantizeLinear") is not weight.endswith("wo.weight")


def test_heads_of_another_size_are_not_quantised(tiny_source: Path) -> None:
    spec = networks.transformer({**open_source(str(tiny_source)).config("transformer"), "num_layers": 1})
    traced, policy = Traces(23).get(spec), dataclasses.replace(POLICIES["transformer"], edge_share=0.0)

    def attentions() -> int:
        chosen = fp8_products(traced, policy)
        return sum(each.product.operator == "Attention" for each in chosen)

    assert attentions() == 2  # of its one block
    for node in traced.graph:
        if node.op_type == "Attention":
            node.metadata_props[HEAD_SIZE] = "24"
    assert attentions() == 0
