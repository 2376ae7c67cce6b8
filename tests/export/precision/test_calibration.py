"""Calibration sees what the networks see; its settings are refused where they cannot act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from telecine.errors import RequestError
from telecine.manifest import FileEntry, Graph, TensorSpec
from telecine_export.precision import calibration
from telecine_export.precision.calibration import SENSITIVE, Calibration, calibrate
from telecine_export.precision.channel_scales import FP8_MAX
from telecine_export.precision.probes import AMAX, ERROR, add_amax, add_errors
from telecine_export.precision.products import Product
from telecine_export.precision.trial_models import MadeSession
from telecine_export.precision.typed import ComponentPlan

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((8, 5)).astype(np.float32)
X = RANDOM.standard_normal((3, 8)).astype(np.float32) * 4
GRAPH = Graph(
    file=FileEntry(path="main.onnx", size=0, sha256=""),
    inputs=(TensorSpec(name="x", dtype="float32", shape=("rows", 8)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("rows", 5)),),
)
PRODUCT = Product(
    node="product", module="linear", operator="MatMul", activations=("tripled",), weight="weight", head_size=0
)


def model() -> ir.Model:
    """y = (3 x) W."""
    floats = [helper.make_tensor_value_info(name, 1, ["rows", size]) for name, size in (("x", 8), ("y", 5))]
    nodes = [
        helper.make_node("Mul", ["x", "three"], ["tripled"]),
        helper.make_node("MatMul", ["tripled", "weight"], ["y"], name="product"),
    ]
    constants = [
        helper.make_tensor("three", 1, [], [3.0]),
        helper.make_tensor("weight", 1, WEIGHT.shape, WEIGHT.tobytes(), raw=True),
    ]
    graph = helper.make_graph(nodes, "g", floats[:1], floats[1:], constants)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))


def probed(made: ir.Model, x: np.ndarray = X) -> dict[str, float]:
    """What the probes of a model give for an input; the model's own output must stay as it was."""
    seen: dict[str, Any] = {}
    with MadeSession(GRAPH, made, ".", seen.update) as session:
        output = session.run({"x": x})["y"]
    np.testing.assert_allclose(output, 3 * x @ WEIGHT, rtol=1e-5, atol=1e-5)
    return {name: float(value) for name, value in seen.items()}


def test_amax_is_the_largest_magnitude() -> None:
    made = model()
    add_amax(made, ["tripled", "x"], 100.0)
    seen = probed(made)
    assert seen == pytest.approx({f"{AMAX}tripled": 3 * np.abs(X).max(), f"{AMAX}x": np.abs(X).max()})


@pytest.mark.parametrize("percentile", [99.99, 99.0, 90.0])
def test_a_percentile_lets_the_largest_saturate(percentile: float) -> None:
    x = RANDOM.standard_normal((400, 8)).astype(np.float32)
    made = model()
    add_amax(made, ["x"], percentile)
    above = int(np.ceil(np.float32(x.size) * np.float32(1 - percentile / 100)))
    assert probed(made, x)[f"{AMAX}x"] == np.sort(np.abs(x), axis=None)[-max(1, above)]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8"])
def test_the_error_of_a_product_is_that_of_rounding(precision: str) -> None:
    import ml_dtypes

    made = model()
    amax = float(np.abs(3 * X).max())
    add_errors(made, [PRODUCT], precision, {"tripled": amax})
    error = probed(made)[f"{ERROR}product"]

    def rounded(values: np.ndarray, scale: Any = 1.0) -> np.ndarray:
        kind = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp8": ml_dtypes.float8_e4m3fn}[precision]
        return (values / scale).astype(np.float32).astype(kind).astype(np.float32) * scale

    exact = 3 * X @ WEIGHT
    if precision == "fp8":
        again = rounded(3 * X, amax / FP8_MAX) @ rounded(WEIGHT, np.abs(WEIGHT).max(axis=0) / FP8_MAX)
    else:
        again = rounded(rounded(3 * X) @ rounded(WEIGHT))
    expected = np.linalg.norm(again - exact) / np.linalg.norm(exact)
    assert error == pytest.approx(expected, rel=0.02)


def test_outliers_make_a_product_sensitive() -> None:
    """What FP8 flushes to zero shows in the measure that leaves layers out of it."""
    outliers = X / 100
    outliers[0, 0] = 3e4
    errors = []
    for x in (X, outliers):
        made = model()
        # The row of the outlier hides in the root mean square: look at the weight's other rows alone.
        add_errors(made, [PRODUCT], "fp8", {"tripled": float(np.abs(3 * x).max())})
        errors.append(probed(made, x[1:])[f"{ERROR}product"])
    assert errors[1] > 4 * errors[0]


def test_prompts_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red ball\n\n  \na fox in the snow\n", encoding="utf-8")
    assert Calibration.read(file, 99.9) == Calibration(prompts=("a red ball", "a fox in the snow"), percentile=99.9)
    assert Calibration.read(None, 100.0).prompts is None


@pytest.mark.parametrize("percentile", [0.0, 89.9, 100.1, float("nan")])
def test_percentiles_out_of_range_are_refused(percentile: float) -> None:
    with pytest.raises(RequestError, match="expected a number from 90 to 100"):
        Calibration(percentile=percentile)


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(RequestError, match="no prompt to calibrate with"):
        Calibration.read(tmp_path / "empty.txt", 100.0)
    with pytest.raises(RequestError, match=r"none\.txt cannot be read"):
        Calibration.read(tmp_path / "none.txt", 100.0)


def test_sensitive_modules_are_kept_out(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {"a": 0.03, "b": 0.02, "c": 0.03 * SENSITIVE * 0.9, "d": 0.03 * SENSITIVE * 1.1, "e": 0.01}
    monkeypatch.setattr(calibration, "_magnitudes", lambda *_: {("transformer", "main"): {"x": 2.0}})
    monkeypatch.setattr(calibration, "sensitivity", lambda *_: errors)
    spec: Any = type("Spec", (), {"component": "transformer", "role": "main"})
    plans = {"transformer": ComponentPlan(precision="fp8"), "vae_decoder": ComponentPlan(precision="fp16")}
    ready = calibrate(None, [spec], None, plans, None, Calibration())  # type: ignore[arg-type]
    assert ready["vae_decoder"] == plans["vae_decoder"]
    assert ready["transformer"].amax == {"main": {"x": 2.0}}
    assert ready["transformer"].kept == {"d"}  # the median is a's
