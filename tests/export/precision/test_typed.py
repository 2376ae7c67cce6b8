"""Strongly typed graphs: every tensor has its type, weights keep their names, the policy is what happens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from telecine.bundle import Bundle
from telecine_export.export import DEFAULT_OPSET
from telecine_export.families import t5
from telecine_export.families.ltx_video import networks
from telecine_export.families.ltx_video.precision import POLICIES
from telecine_export.precision.policy import Policy
from telecine_export.precision.typed import Traces, typed
from telecine_export.source import open_source
from telecine_export.trace import MODULE, TRANSPOSED

HALVES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16, "fp8": TensorProto.FLOAT16}
COMPONENTS = ("text_encoder", "transformer", "vae_encoder", "vae_decoder")
LOWERED = [(precision, component) for precision in HALVES for component in COMPONENTS]


@pytest.fixture(scope="module")
def graph(demo_bundles: Path) -> Callable[[str, str], onnx.ModelProto]:
    def load(precision: str, component: str) -> onnx.ModelProto:
        return onnx.load(demo_bundles / precision / component / "main.onnx", load_external_data=False)

    return load


@pytest.fixture(scope="module")
def text_encoder() -> tuple[Traces, Any]:
    """A tiny T5's trace."""
    config = {
        "d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 2, "vocab_size": 50,
        "feed_forward_proj": "gated-gelu", "model_type": "t5", "is_encoder_decoder": False, "use_cache": False,
    }  # fmt: skip
    return Traces(DEFAULT_OPSET), t5.text_encoder(config)


def dtypes(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every value, by ONNX's own strict inference: a node whose inputs disagree is an error."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.input)}
    return found | {weight.name: weight.data_type for weight in inferred.initializer}


@pytest.mark.parametrize(("precision", "component"), LOWERED)
def test_every_value_has_a_type_and_the_edges_are_float32(
    precision: str, component: str, graph: Callable[[str, str], onnx.ModelProto]
) -> None:
    model = graph(precision, component)
    types = dtypes(model)
    assert all(types[name] for node in model.graph.node for name in node.output if name in types)
    for node in model.graph.node:
        floats = {
            types[name]
            for name in node.input
            if types.get(name) in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
        }
        assert len(floats) <= 1, (node.name, floats)
    edges = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert set(edges) <= {TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64}
    products = Counter(types[node.input[0]] for node in model.graph.node if node.op_type in ("MatMul", "Conv"))
    half = HALVES[precision]
    assert products[half] > 3 * products[TensorProto.FLOAT]
    assert set(products) <= {half, TensorProto.FLOAT}


@pytest.mark.parametrize(("precision", "component"), LOWERED)
def test_names_and_layout_of_weights_stay(
    precision: str, component: str, graph: Callable[[str, str], onnx.ModelProto]
) -> None:
    def weights(model: onnx.ModelProto) -> dict[str, tuple[tuple[int, ...], bool]]:
        noted = {
            info.name for info in model.graph.value_info for entry in info.metadata_props if entry.key == TRANSPOSED
        }
        noted |= {w.name for w in model.graph.initializer for entry in w.metadata_props if entry.key == TRANSPOSED}
        return {
            weight.name: (tuple(weight.dims), weight.name in noted)
            for weight in model.graph.initializer
            if weight.data_location == TensorProto.EXTERNAL and not weight.name.endswith(".scale")
        }

    exact = weights(graph("fp32", component))
    assert weights(graph(precision, component)) == exact
    assert any(transposed for _, transposed in exact.values()) == (component in ("text_encoder", "transformer"))


@pytest.mark.parametrize(("precision", "component"), LOWERED)
def test_casts_are_few(precision: str, component: str, graph: Callable[[str, str], onnx.ModelProto]) -> None:
    """No cast of a cast, no value cast twice to one type; and no more casts than products ask for."""
    model = graph(precision, component)
    types = dtypes(model)
    casts = [node for node in model.graph.node if node.op_type == "Cast" and types[node.input[0]] in
             (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)]  # fmt: skip
    made = {node.output[0] for node in casts}
    assert not [node.name for node in casts if node.input[0] in made]
    pairs = Counter((node.input[0], node.attribute[0].i) for node in casts)
    assert max(pairs.values()) == 1
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv", "Attention")]
    assert len(casts) <= 2 * len(products)


def test_the_policy_is_what_happens(graph: Callable[[str, str], onnx.ModelProto]) -> None:
    model = graph("fp16", "transformer")
    stored = {weight.name: weight.data_type for weight in model.graph.initializer}
    float32 = re.compile(
        r"(time_embed|proj_in|proj_out)\..*|scale_shift_table|.*\.(scale_shift_table|norm_[qk]\.weight)"
    )
    for name in (name for name in stored if name.endswith((".weight", ".bias", "scale_shift_table"))):
        expected = TensorProto.FLOAT if float32.fullmatch(name) else TensorProto.FLOAT16
        assert stored[name] == expected, name
    t5 = {weight.name: weight.data_type for weight in graph("fp16", "text_encoder").graph.initializer}
    assert {t5[name] for name in t5 if name.endswith("wo.weight")} == {TensorProto.FLOAT}
    assert {t5[name] for name in t5 if name.endswith(("q.weight", "wi_0.weight"))} == {TensorProto.FLOAT16}
    t5 = {weight.name: weight.data_type for weight in graph("bf16", "text_encoder").graph.initializer}
    assert {t5[name] for name in t5 if name.endswith("wo.weight")} == {TensorProto.BFLOAT16}


def test_types_are_recorded_nowhere_but_in_the_graph(demo_bundles: Path) -> None:
    for precision in ("fp32", "fp16", "bf16"):
        parts = Bundle.open(demo_bundles / precision).manifest.components.values()
        assert {part.precision for part in parts if part.parameters} == {precision}
        specs = [spec for part in parts for g in part.graphs.values() for spec in (*g.inputs, *g.outputs)]
        assert {spec.dtype for spec in specs} == {"float32", "int32", "int64", "uint8"}
    mixed = Bundle.open(demo_bundles / "fp8").manifest.components
    assert [mixed[name].precision for name in COMPONENTS] == ["fp8", "fp8", "fp16", "fp16"]


def test_a_trace_serves_every_precision_and_is_not_changed(text_encoder: tuple[Traces, Any]) -> None:
    traces, spec = text_encoder
    traced = traces.get(spec)
    assert traces.get(spec) is traced
    before = ir.to_proto(traced).SerializeToString()
    made = {name: typed(traced, name, POLICIES["text_encoder"]) for name in ("fp16", "bf16", "fp32")}
    assert ir.to_proto(traced).SerializeToString() == before
    assert len({ir.to_proto(model).SerializeToString() for model in made.values()}) == 3
    for model in made.values():
        assert not [node for node in model.graph if node.metadata_props]
    assert all(MODULE in node.metadata_props for node in traced.graph)


def test_a_constant_beyond_a_half_s_range_becomes_its_largest(text_encoder: tuple[Traces, Any]) -> None:
    traces, spec = text_encoder

    plain = typed(traces.get(spec), "fp16", Policy())
    constants = [
        value.const_value.numpy() for value in plain.graph.initializers.values() if value.const_value is not None
    ]
    assert all(abs(each).max() < float("inf") for each in constants if each.dtype.kind == "f" and each.size)
    smallest = min(each.min() for each in constants if each.dtype == "float16" and each.size)
    assert smallest == -65504  # the mask's -3.4e38


def test_a_kept_module_stays_in_float32(text_encoder: tuple[Traces, Any]) -> None:
    traces, spec = text_encoder
    module = "encoder.block.1.layer.0.SelfAttention.q"
    for kept, expected in (((), ir.DataType.FLOAT16), ((module,), ir.DataType.FLOAT)):
        model = typed(traces.get(spec), "fp16", POLICIES["text_encoder"], kept=kept)
        assert model.graph.initializers[f"{module}.weight"].dtype == expected
        assert model.graph.initializers[f"{module.replace('.q', '.k')}.weight"].dtype == ir.DataType.FLOAT16


def test_attention_in_opset_20_multiplies_in_half(tiny_source: Path) -> None:
    """There it is spelled out, by scaled queries and keys, softmax and two products."""
    config = open_source(str(tiny_source)).config("transformer")
    traced = Traces(20).get(networks.transformer({**config, "num_layers": 1}))
    spelled = [
        node.name
        for node in traced.graph
        if node.op_type in ("MatMul", "Softmax") and node.metadata_props[MODULE].endswith(("attn1", "attn2"))
    ]
    assert len(spelled) == 2 * 3
    model = ir.to_proto(typed(traced, "fp16", POLICIES["transformer"]))
    types = dtypes(model)
    found = {types[node.output[0]] for node in model.graph.node if node.name in spelled}
    assert found == {TensorProto.FLOAT16}
