"""Precisions on ONNX Runtime: what its CPU provider cannot run is refused by name, float8 is left as it is written."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import telecine
from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.errors import BackendError
from telecine.manifest import FileEntry, Graph, TensorSpec

GRAPH = Graph(
    file=FileEntry(path="main.onnx", size=0, sha256=""),
    inputs=(TensorSpec(name="x", dtype="float32", shape=("rows", 8)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("rows", 4)),),
)
WEIGHT = np.random.default_rng(0).standard_normal((8, 4)).astype(ml_dtypes.float8_e4m3fn)
X = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)


@pytest.fixture
def fp8_graph(tmp_path: Path) -> Path:
    """y = fp8(x) fp8(W), scales of float32."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale"], ["q"], output_dtype=TensorProto.FLOAT8E4M3FN),
        helper.make_node("DequantizeLinear", ["q", "x_scale"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "w.scale"], ["dw"], axis=1),
        helper.make_node("MatMul", ["d", "dw"], ["y"]),
    ]
    constants = [
        helper.make_tensor("x_scale", 1, [], [0.125]),
        helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, WEIGHT.shape, WEIGHT.tobytes(), raw=True),
        helper.make_tensor("w.scale", 1, [4], [0.5, 1.0, 2.0, 4.0]),
    ]
    ends = [helper.make_tensor_value_info(name, 1, ["rows", size]) for name, size in (("x", 8), ("y", 4))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    path = tmp_path / "main.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return path


def load(path: Path, precision: str) -> OnnxRuntimeSession:
    return OnnxRuntimeSession.load(GRAPH, path, device="cpu", options=OnnxRuntimeOptions(), precision=precision)


def test_float8_is_run_as_written(fp8_graph: Path) -> None:
    with load(fp8_graph, "fp8") as session:
        made = session.run({"x": X})["y"]
    x = (X / 0.125).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * 0.125
    expected = x @ (WEIGHT.astype(np.float32) * np.array([0.5, 1, 2, 4], np.float32))
    np.testing.assert_allclose(made, expected, rtol=1e-6)


def test_its_integer_rewriting_would_fail(fp8_graph: Path) -> None:
    """Why fp8 turns it off: where a later ONNX Runtime runs this graph without, the setting may go."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match=r"(?i)float8|MatMulIntegerToFloat|type"):
        onnxruntime.InferenceSession(fp8_graph, options, providers=["CPUExecutionProvider"]).run(None, {"x": X})


def test_bf16_on_the_cpu_is_refused_with_the_alternative(fp8_graph: Path) -> None:
    with pytest.raises(BackendError, match=r"is bf16, on CPUExecutionProvider; expected fp32, fp16 or fp8.*--prec"):
        load(fp8_graph, "bf16")


def test_a_bf16_bundle_is_refused_before_its_weights_are_read(demo_bundles: Path) -> None:
    with (
        telecine.load(demo_bundles / "bf16") as pipe,
        pytest.raises(BackendError, match="text_encoder is bf16, on CPUExecutionProvider"),
    ):
        pipe.generate("a red ball", height=64, width=64, num_frames=9, num_inference_steps=2)


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_other_precisions_make_videos(precision: str, demo_bundles: Path) -> None:
    with telecine.load(demo_bundles / precision) as pipe:
        frames = pipe.generate("a red ball", height=64, width=64, num_frames=9, num_inference_steps=2, seed=0).frames
    assert frames is not None
    assert frames.dtype == np.float32
    assert np.isfinite(frames).all()
    assert frames.std() > 0.01
