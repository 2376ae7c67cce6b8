"""What a traced graph is: the contract's names, nothing of the tracer, nothing that TensorRT refuses, torch's numbers.

`tests/parity/test_transformer_graph.py` tries the default opset at many sizes; here both opsets run, and fp16.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from transformers import T5EncoderModel

from telecine.rope import grid_index, make_tables, video_positions
from telecine.shapes import Grid, LatentShape
from telecine_export.export import Progress, export_component
from telecine_export.families.ltx_video import networks
from telecine_export.families.ltx_video.precision import POLICIES
from telecine_export.source import open_source
from telecine_export.trace import free_axis

COMPONENTS = ["text_encoder", "transformer", "vae_encoder", "vae_decoder"]
GRID = Grid(temporal=8, spatial=32)
# Summation order is all that differs. Outputs have deviations of 0.3 to 1.1; measured up to 4e-6.
FP32 = 2e-5
# float16 has 11 bits, so each operation rounds by 5e-4 of its size. Measured up to 5e-3, of fp32 and of torch's fp16.
FP16 = 1e-2

# The graph contracts, at the widths of the tiny model.
CONTRACTS: dict[str, tuple[dict[str, tuple[str, list[int | str]]], tuple[str, list[int | str]]]] = {
    "text_encoder": (
        {"input_ids": ("int64", ["batch", "text_length"])},
        ("prompt_embeds", ["batch", "text_length", 32]),
    ),
    "transformer": (
        {
            "hidden_states": ("float32", ["batch", "tokens", 16]),
            "encoder_hidden_states": ("float32", ["batch", "text_length", 32]),
            "encoder_attention_mask": ("float32", ["batch", "text_length"]),
            "timestep": ("float32", ["batch", "timestep_tokens"]),
            "rope_cos": ("float32", [3, "rope_positions", 10]),
            "rope_sin": ("float32", [3, "rope_positions", 10]),
            "rope_index": ("int32", ["tokens", 3]),
            "stg_mode": ("int32", [2, "batch"]),
        },
        ("velocity", ["batch", "tokens", 16]),
    ),
    "vae_encoder": (
        {"video": ("float32", ["batch", 3, "8*latent_frames-7", "32*latent_height", "32*latent_width"])},
        ("moments", ["batch", 17, "latent_frames", "latent_height", "latent_width"]),
    ),
    "vae_decoder": (
        {
            "latents": ("float32", ["batch", 16, "latent_frames", "latent_height", "latent_width"]),
            "timestep": ("float32", ["batch"]),
        },
        ("video", ["batch", 3, "8*latent_frames-7", "32*latent_height", "32*latent_width"]),
    ),
}

Feeds = dict[str, np.ndarray]


def export(source: Path, folder: Path, components: list[str], *, precision: str, opset: int) -> None:
    folder.mkdir()
    opened = open_source(str(source))
    for spec in networks.graphs(opened):
        if spec.component in components:
            export_component(
                opened,
                folder,
                [spec],
                precision=precision,
                opset=opset,
                progress=Progress(),
                policy=POLICIES[spec.component],
            )


@pytest.fixture(scope="session")
def graph_file(shared: Callable[..., Path], tiny_source: Path, tiny_bundle: Path) -> Callable[[str, int], Path]:
    """`graph_file("transformer", 20)`: the tiny source's graph at an opset."""

    def get(component: str, opset: int) -> Path:
        def make(path: Path) -> None:
            export(tiny_source, path, [component], precision="fp32", opset=20)

        folder = tiny_bundle if opset == 23 else shared(f"tiny-{component}-opset-20", make)
        return folder / component / "main.onnx"

    return get


@pytest.fixture(scope="session")
def half(shared: Callable[..., Path], tiny_source: Path) -> Path:
    """The tiny source's transformer at fp16."""
    return shared("tiny-fp16", lambda path: export(tiny_source, path, ["transformer"], precision="fp16", opset=23))


def at_opsets(component: str) -> list[Any]:
    """Parameters of a component at both opsets; they differ in attention and norms, which the VAE has least of."""
    marks = pytest.mark.slow if component.startswith("vae") else ()
    return [pytest.param((component, 20), marks=marks), (component, 23)]


@pytest.fixture(params=[each for component in COMPONENTS for each in at_opsets(component)], ids=str)
def graph(request: Any, graph_file: Callable[[str, int], Path]) -> tuple[str, int, onnx.ModelProto]:
    component, opset = request.param
    return component, opset, onnx.load(graph_file(component, opset), load_external_data=False)


def run(path: Path, feeds: Feeds) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, feeds)[0]
    return output


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# What is in the file


def test_inputs_and_outputs_are_the_contract_s(graph: tuple[str, int, onnx.ModelProto]) -> None:
    component, opset, model = graph
    inputs, (output, output_shape) = CONTRACTS[component]

    def spec(value: onnx.ValueInfoProto) -> tuple[str, list[int | str]]:
        tensor = value.type.tensor_type
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        return dtype, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]

    assert {value.name: spec(value) for value in model.graph.input} == inputs
    assert [value.name for value in model.graph.input] == list(inputs)
    assert {value.name: spec(value) for value in model.graph.output} == {output: ("float32", output_shape)}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert not model.functions


def test_nothing_of_the_tracer_is_left(graph: tuple[str, int, onnx.ModelProto]) -> None:
    _, _, model = graph
    content = model.SerializeToString()
    for trace in (b"site-packages", b".py", b"/work", b"/home", str(Path.cwd()).encode(), b"stack_trace", b"pkg."):
        assert trace not in content, trace
    assert not [node.name for node in model.graph.node if node.metadata_props or node.doc_string]
    assert not re.search(rb"\bs\d+\b", content), "an axis that torch named"
    initializers = {tensor.name for tensor in model.graph.initializer}
    assert {value.name for value in model.graph.value_info} <= initializers, "shapes as they were traced"


def test_every_value_has_a_name_of_its_own(graph: tuple[str, int, onnx.ModelProto]) -> None:
    _, _, model = graph
    names = [value.name for value in model.graph.input] + [tensor.name for tensor in model.graph.initializer]
    names += [output for node in model.graph.node for output in node.output if output]
    assert len(names) == len(set(names))


def test_no_weight_lies_in_the_graph_file(graph: tuple[str, int, onnx.ModelProto], tiny_source: Path) -> None:
    component, _, model = graph
    folder = "vae" if component.startswith("vae") else component
    inline = [tensor for tensor in model.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    with open_source(str(tiny_source)).checkpoint(folder) as checkpoint:
        assert not [tensor.name for tensor in inline if tensor.name in checkpoint]
    assert max(np.prod(tensor.dims) for tensor in inline) <= 128  # the timestep's frequencies
    assert model.ByteSize() < 200_000


def test_what_tensorrt_wants_constant_is_constant(graph: tuple[str, int, onnx.ModelProto]) -> None:
    _, _, model = graph
    constant = {tensor.name for tensor in model.graph.initializer} | {""}
    wanted = {"Unsqueeze": [1], "Squeeze": [1], "Pad": [1], "Slice": [3, 4]}
    kinds = set()
    for node in model.graph.node:
        kinds.add(node.op_type)
        positions = [1] if node.op_type.startswith("Reduce") else wanted.get(node.op_type, [])
        assert all(node.input[i] in constant for i in positions if i < len(node.input)), (node.op_type, node.name)
    assert not kinds & {"Loop", "If", "Scan", "NonZero", "ScatterND", "SequenceConstruct"}
    assert not kinds & {"RandomNormal", "RandomNormalLike", "Dropout"}


def test_opset_23_uses_its_fused_operators_and_opset_20_none(graph_file: Callable[[str, int], Path]) -> None:
    kinds = {
        opset: {
            node.op_type for node in onnx.load(graph_file("transformer", opset), load_external_data=False).graph.node
        }
        for opset in (20, 23)
    }
    assert {"Attention", "RMSNormalization"} <= kinds[23]
    assert not {"Attention", "RMSNormalization", "RotaryEmbedding"} & kinds[20]


def test_the_text_mask_is_spelled_out_per_query(graph_file: Callable[[str, int], Path]) -> None:
    """ONNX Runtime's Attention reads its mask as (..., T, L): a broadcast query axis would be read past its end."""
    model = onnx.load(graph_file("transformer", 23), load_external_data=False)
    maker = {output: node.op_type for node in model.graph.node for output in node.output}
    masks = [node.input[3] for node in model.graph.node if node.op_type == "Attention" and len(node.input) > 3]
    assert len(masks) == 2
    assert {maker[mask] for mask in masks if mask} == {"Expand"}


# What it computes


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 200)])
def test_text_encoder(opset: int, shape: tuple[int, int], graph_file: Any, tiny_source: Path) -> None:
    """Lengths below and above 16, 32, 64 and 128, where T5's relative positions change buckets."""
    ids = np.random.default_rng(1).integers(0, 300, shape)
    theirs = T5EncoderModel.from_pretrained(tiny_source / "text_encoder").eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).last_hidden_state
    ours = run(graph_file("text_encoder", opset), {"input_ids": ids})
    np.testing.assert_allclose(ours, expected, rtol=0, atol=FP32)


def transformer_call(shape: LatentShape, batch: int, length: int, per_token: bool) -> tuple[Feeds, dict[str, Any]]:
    """The same call for the graph and for diffusers' transformer."""
    tokens = shape.tokens
    mask = np.ones((batch, length), np.float32)
    mask[:, length - length // 3 :] = 0
    steps = np.random.default_rng(2).uniform(0, 1000, (batch, tokens if per_token else 1)).astype(np.float32)
    frequencies = networks.rope_frequencies({"num_attention_heads": 4, "attention_head_dim": 16}).numpy()
    tables = make_tables(video_positions(shape, GRID, 25), grid_index(shape), frequencies)
    feeds = {
        "hidden_states": draw(batch, tokens, 16),
        "encoder_hidden_states": draw(batch, length, 32, seed=1),
        "encoder_attention_mask": mask,
        "timestep": steps,
        "rope_cos": tables.cos,
        "rope_sin": tables.sin,
        "rope_index": tables.index,
        "stg_mode": np.zeros((2, batch), np.int32),
    }
    torch_inputs: dict[str, Any] = {name: torch.from_numpy(feeds[name]) for name in list(feeds)[:4]}
    torch_inputs["encoder_attention_mask"] = torch.from_numpy(mask).bool()
    sizes = {"num_frames": shape.frames, "height": shape.height, "width": shape.width}
    return feeds, {**torch_inputs, **sizes, "rope_interpolation_scale": (8 / 25, 32, 32), "return_dict": False}


def diffusers_velocity(source: Path, inputs: dict[str, Any], dtype: torch.dtype = torch.float32) -> np.ndarray:
    model: Any = LTXVideoTransformer3DModel.from_pretrained(source / "transformer", torch_dtype=dtype).eval()
    cast = {name: value.to(dtype) if name.endswith("hidden_states") else value for name, value in inputs.items()}
    with torch.no_grad():
        (velocity,) = model(**cast)
    result: np.ndarray = velocity.float().numpy()
    assert result.std() > 0.5, "a flat reference proves nothing"
    return result


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize(("shape", "batch", "length"), [((1, 1, 1), 1, 1), ((3, 2, 5), 3, 9)])
def test_transformer_takes_both_timestep_forms(
    shape: tuple[int, int, int],
    batch: int,
    length: int,
    opset: int,
    per_token: bool,
    graph_file: Any,
    tiny_source: Path,
) -> None:
    latent = LatentShape(frames=shape[0], height=shape[1], width=shape[2])
    feeds, inputs = transformer_call(latent, batch, length, per_token)
    ours = run(graph_file("transformer", opset), feeds)
    np.testing.assert_allclose(ours, diffusers_velocity(tiny_source, inputs), rtol=0, atol=FP32)


@pytest.mark.parametrize("per_token", [False, True])
def test_transformer_at_fp16(per_token: bool, half: Path, tiny_source: Path) -> None:
    feeds, inputs = transformer_call(LatentShape(frames=3, height=2, width=5), 2, 9, per_token)
    ours = run(half / "transformer" / "main.onnx", feeds)
    for dtype in (torch.float32, torch.float16):
        expected = diffusers_velocity(tiny_source, inputs, dtype)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=FP16)


@pytest.mark.parametrize("opset", [pytest.param(20, marks=pytest.mark.slow), 23])
@pytest.mark.parametrize("shape", [(1, 3, 1, 32, 32), (2, 3, 25, 64, 96)])
def test_vae_encoder(opset: int, shape: tuple[int, ...], graph_file: Any, tiny_source: Path) -> None:
    video = np.clip(0.5 * draw(*shape), -1, 1)
    vae: Any = AutoencoderKLLTXVideo.from_pretrained(tiny_source / "vae").eval()
    with torch.no_grad():
        expected = vae.encoder(torch.from_numpy(video))
    ours = run(graph_file("vae_encoder", opset), {"video": video})
    channels = ours.shape[1]
    np.testing.assert_allclose(ours, expected[:, :channels], rtol=0, atol=FP32)
    assert torch.equal(expected[:, channels:], expected[:, channels - 1 : channels].expand(-1, 15, -1, -1, -1))


@pytest.mark.parametrize("opset", [pytest.param(20, marks=pytest.mark.slow), 23])
@pytest.mark.parametrize("shape", [(1, 16, 1, 1, 1), (2, 16, 4, 3, 2)])
def test_vae_decoder(opset: int, shape: tuple[int, ...], graph_file: Any, tiny_source: Path) -> None:
    latents, timestep = draw(*shape), np.linspace(0.05, 0.5, shape[0], dtype=np.float32)
    vae: Any = AutoencoderKLLTXVideo.from_pretrained(tiny_source / "vae").eval()
    with torch.no_grad():
        expected = vae.decoder(torch.from_numpy(latents), torch.from_numpy(timestep))
    ours = run(graph_file("vae_decoder", opset), {"latents": latents, "timestep": timestep})
    np.testing.assert_allclose(ours, expected, rtol=0, atol=FP32)


# Freeing an axis


def reshaping_model(shape: list[int], rank: int) -> ir.Model:
    """x (B, T, 6) → Reshape(x * 2, shape) → y, with B = 2 and T = 4 as traced."""
    x = ir.Value(name="x", shape=ir.Shape(["batch", "tokens", 6]), type=ir.TensorType(ir.DataType.FLOAT))
    two = ir.Value(name="two", const_value=ir.tensor(np.float32(2), name="two"))
    target = ir.Value(name="target", const_value=ir.tensor(np.array(shape), name="target"))
    double = ir.node("Mul", [x, two])
    double.outputs[0].shape = x.shape
    reshape = ir.node("Reshape", [double.outputs[0], target], attributes={"allowzero": 1})
    y = reshape.outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    y.shape = ir.Shape(["batch", "tokens", *shape[2:]]) if rank > 2 else ir.Shape([None, 6])
    graph = ir.Graph([x], [y], nodes=[double, reshape], initializers=[two, target], opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize(("shape", "rank"), [([2, 4, 2, 3], 4), ([-1, 6], 2)])
def test_a_freed_axis_follows_its_input_through_reshapes(shape: list[int], rank: int, tmp_path: Path) -> None:
    model = reshaping_model(shape, rank)
    free_axis(model, "x", 1, "steps")
    model.graph.outputs[0].shape = None
    ir.save(model, tmp_path / "model.onnx")
    assert str(model.graph.inputs[0].shape) == "[batch,steps,6]"
    x = draw(2, 7, 6)
    expected = (2 * x).reshape(2, 7, 2, 3) if rank > 2 else (2 * x).reshape(-1, 6)
    np.testing.assert_array_equal(run(tmp_path / "model.onnx", {"x": x}), expected)


def test_a_reshape_that_cannot_follow_a_freed_axis_is_refused() -> None:
    model = reshaping_model([2, 4, 2, 3], 4)
    model.graph.outputs[0].shape = ir.Shape(["batch", "tokens", "odd", 3])
    with pytest.raises(RuntimeError, match="cannot follow a free axis"):
        free_axis(model, "x", 1, "steps")
