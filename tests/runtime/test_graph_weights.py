"""Initializers as the checkpoint has them, against the onnx package and torch's casts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file

from telecine.bundle import Bundle
from telecine.errors import BundleError
from telecine.graph_weights import GraphWeights, scale_name
from telecine.initializers import TRANSPOSED, read_initializers

TORCH = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
}


def write_graph(folder: Path, tensors: dict[str, tuple[torch.Tensor, bool]]) -> Path:
    """A graph with these initializers, stored as they are or transposed, in a weights file."""
    types = {dtype: kind for kind, dtype in TORCH.items()}
    content, protos, infos = b"\1" * 64, [], []
    for name, (tensor, transposed) in tensors.items():
        laid_out = (tensor.T if transposed else tensor).contiguous()
        data = laid_out.reshape(-1).view(torch.uint8).numpy().tobytes()
        proto = TensorProto(name=name, dims=laid_out.shape, data_type=types[tensor.dtype])
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "weights.bin"), ("offset", len(content)), ("length", len(data))):
            proto.external_data.add(key=key, value=str(value))
        protos.append(proto)
        info = helper.make_tensor_value_info(name, proto.data_type, laid_out.shape)
        if transposed:
            info.metadata_props.add(key=TRANSPOSED, value="1")
        infos.append(info)
        content += data
    inline = helper.make_tensor("axes", TensorProto.INT64, [1], np.array([1], np.int64).tobytes(), raw=True)
    graph = helper.make_graph([], "g", [], [], [*protos, inline], value_info=infos)
    onnx.save(helper.make_model(graph), folder / "main.onnx")
    (folder / "weights.bin").write_bytes(content)
    return folder / "main.onnx"


def opened(graph: Path) -> GraphWeights:
    return GraphWeights(graph, origin=graph.parent)


def test_a_bundle_s_weights_are_the_checkpoint_s(tiny_bundle: Path, tiny_source: Path) -> None:
    (file,) = (tiny_source / "transformer").glob("*.safetensors")
    weights = GraphWeights.open(Bundle.open(tiny_bundle), "transformer")
    tensors = load_file(file)
    assert set(weights.names()) == set(tensors)
    for name, tensor in tensors.items():
        assert weights.shape(name) == tuple(tensor.shape)
        np.testing.assert_array_equal(weights.load(name), tensor.numpy())


def test_marks_and_types_are_onnx_s(tiny_bundle: Path) -> None:
    path = tiny_bundle / "transformer" / "main.onnx"
    graph = onnx.load(path).graph
    marks = {info.name for info in graph.value_info if any(each.key == TRANSPOSED for each in info.metadata_props)}
    found = read_initializers(path)
    assert len(marks) > 10
    assert {name for name, each in found.items() if each.transposed} == marks
    for proto in graph.initializer:
        np.testing.assert_array_equal(found[proto.name].read(), onnx.numpy_helper.to_array(proto))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_stored_types_are_torch_s(kind: int, transposed: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(5, 7).to(TORCH[kind])
    weights = opened(write_graph(tmp_path, {"w": (tensor, transposed), "b": (tensor[0].clone(), False)}))
    assert list(weights.names()) == ["w", "b"]  # and not the axes, which lie in the graph
    np.testing.assert_array_equal(weights.load("w"), tensor.float().numpy())
    new = torch.randn(5, 7)
    (stored,) = weights.store("w", new.numpy()).values()
    expected = (new.T if transposed else new).contiguous().to(TORCH[kind])
    assert stored.shape == tuple(expected.shape)
    assert stored.tobytes() == expected.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_float8_with_a_scale_for_each_output(kind: int, transposed: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    codes = torch.randn(6, 9).to(torch.float8_e4m3fn)  # (outputs, inputs)
    scales = (torch.rand(6) + 0.5).to(TORCH[kind])
    weights = opened(write_graph(tmp_path, {"w": (codes, transposed), scale_name("w"): (scales, False)}))
    assert list(weights.names()) == ["w"]
    np.testing.assert_array_equal(weights.load("w"), (codes.float() * scales.float()[:, None]).numpy())
    new = torch.randn(6, 9) * torch.tensor([1e3, 1, 1e-3, 0, 1e-7, 5])[:, None]  # one of zeros, one below every scale
    stored = weights.store("w", new.numpy())
    least = torch.finfo(torch.float16).tiny
    expected_scales = (new.abs().amax(1) / 448).clamp(min=least).to(TORCH[kind])
    expected = (new / expected_scales.float()[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert stored[scale_name("w")].tobytes() == expected_scales.view(torch.uint8).numpy().tobytes()
    laid_out = (expected.T if transposed else expected).contiguous()
    assert stored["w"].tobytes() == laid_out.view(torch.uint8).numpy().tobytes()


def test_a_name_that_only_ends_like_a_scale_is_a_weight(tmp_path: Path) -> None:
    weights = opened(write_graph(tmp_path, {"norm.scale": (torch.ones(3), False)}))
    assert list(weights.names()) == ["norm.scale"]


def test_a_cut_weights_file_is_refused(tmp_path: Path) -> None:
    graph = write_graph(tmp_path, {"w": (torch.ones(64, 64), False)})
    weights = opened(graph)
    (tmp_path / "weights.bin").write_bytes(b"\0" * 100)
    with pytest.raises(BundleError, match="does not hold w"):
        weights.load("w")
