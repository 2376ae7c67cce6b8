"""The emulation of halves rounds what torch's own bfloat16 and float16 round."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper

from telecine.manifest import FileEntry, Graph, TensorSpec
from telecine_export.precision.emulate import emulate
from telecine_export.precision.trial_models import MadeSession

HALVES = {"fp16": (TensorProto.FLOAT16, np.float16, torch.float16, ir.DataType.FLOAT16),
          "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16, torch.bfloat16, ir.DataType.BFLOAT16)}  # fmt: skip
GRAPH = Graph(
    file=FileEntry(path="main.onnx", size=0, sha256=""),
    inputs=(TensorSpec(name="x", dtype="float32", shape=("rows", 16)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("rows", 8)),),
)
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((5, 16)).astype(np.float32)
WEIGHT = RANDOM.standard_normal((16, 8)).astype(np.float32)
BIAS = RANDOM.standard_normal(8).astype(np.float32)


def run(nodes: list, half: str) -> np.ndarray:
    """Nodes from `a` (x, cast to half) to `b` (cast to y), over half-precision weights, emulated."""
    kind, numpy_kind, _, dtype = HALVES[half]
    floats = [helper.make_tensor_value_info(name, 1, ["rows", size]) for name, size in (("x", 16), ("y", 8))]
    weights = [
        helper.make_tensor(name, kind, values.shape, values.astype(numpy_kind).tobytes(), raw=True)
        for name, values in (("weight", WEIGHT), ("bias", BIAS))
    ]
    inside = [
        helper.make_node("Cast", ["x"], ["a"], to=kind), *nodes, helper.make_node("Cast", ["b"], ["y"], to=1)
    ]  # fmt: skip
    proto = helper.make_model(
        helper.make_graph(inside, "g", floats[:1], floats[1:], weights),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=10,
    )
    model = ir.from_proto(proto)
    emulate(model, dtype)
    with MadeSession(GRAPH, model, ".") as session:
        return session.run({"x": X})["y"]


@pytest.mark.parametrize("half", HALVES)
def test_a_linear_layer_is_torch_s_to_the_last_bit(half: str) -> None:
    """The bias is added before the product is rounded. Sums in another order may tip the last bit of a few."""
    nodes = [helper.make_node("MatMul", ["a", "weight"], ["p"]), helper.make_node("Add", ["p", "bias"], ["b"])]
    kind = HALVES[half][2]
    x, weight, bias = (torch.from_numpy(values).to(kind) for values in (X, WEIGHT, BIAS))
    expected = torch.nn.functional.linear(x, weight.T, bias).float().numpy()
    made = run(nodes, half)
    assert np.mean(made == expected) > 0.95
    np.testing.assert_allclose(made, expected, rtol=2.0**-7 if half == "bf16" else 2.0**-10)


@pytest.mark.parametrize("half", HALVES)
def test_every_operator_rounds(half: str) -> None:
    nodes = [
        helper.make_node("MatMul", ["a", "weight"], ["p"]),
        helper.make_node("Mul", ["p", "p"], ["squares"]),
        helper.make_node("Mul", ["squares", "bias"], ["b"]),
    ]
    kind = HALVES[half][2]
    x, weight, bias = (torch.from_numpy(values).to(kind) for values in (X, WEIGHT, BIAS))
    product = x @ weight
    expected = (product * product * bias).float().numpy()
    made = run(nodes, half)
    assert np.mean(made == expected) > 0.9
    once = ((x.float() @ weight.float()) ** 2 * bias.float()).to(kind).float().numpy()
    assert np.mean(once == expected) < 0.8  # rounding at the end alone is another result


def test_float16_overflows_between_operators() -> None:
    """ONNX Runtime's own float16 computes this chain in float32, and hides what a GPU would do."""
    nodes = [
        helper.make_node("MatMul", ["a", "weight"], ["p"]),
        helper.make_node("Mul", ["p", "p"], ["squares"]),
        helper.make_node("Exp", ["squares"], ["e"]),
        helper.make_node("Log", ["e"], ["b"]),
    ]
    overflown = np.square(X @ WEIGHT) > 12  # exp(12) is 1.6e5
    assert overflown.any()
    assert np.isinf(run(nodes, "fp16"))[overflown].all()
    bounded = np.square(X @ WEIGHT) < 80
    assert np.isfinite(run(nodes, "bf16"))[bounded].all()
