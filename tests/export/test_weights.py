"""`weights.bin` holds the checkpoint's own tensors, under its own names, in the type and layout that the graph says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file

from telecine.errors import SourceError
from telecine.families.ltx_video.names import TIED_NAMES
from telecine.initializers import TRANSPOSED
from telecine.safetensors_files import weight_files
from telecine_export import weights as weights_module
from telecine_export.checkpoints.safetensors_files import SafetensorsCheckpoint
from telecine_export.source import open_source
from telecine_export.weights import CACHE_LINE, LARGE, PAGE, WeightsFile, WeightsWriter

COMPONENTS = {"text_encoder": "text_encoder", "transformer": "transformer", "vae_encoder": "vae", "vae_decoder": "vae"}
TYPES = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}

Write = Callable[..., tuple[WeightsFile, dict[str, ir.ExternalTensor], list[int]]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(checkpoint, wanted)`: stream tensors of a checkpoint, as a model whose initializers are `wanted` asks.

    `wanted` maps a name to (shape, dtype, transposed).
    """

    def run(checkpoint: dict[str, torch.Tensor], *models: dict[str, tuple[list[int], torch.dtype, bool]]) -> Any:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        save_file(checkpoint, folder / "model.safetensors")
        pieces: list[int] = []
        attached: dict[str, ir.ExternalTensor] = {}
        with (
            SafetensorsCheckpoint(weight_files(folder), folder) as opened,
            WeightsWriter(tmp_path / "weights.bin", opened, progress=pieces.append) as writer,
        ):
            for wanted in models:
                model = awaiting(wanted)
                writer.attach(model)
                for name, value in model.graph.initializers.items():
                    assert isinstance(value.const_value, ir.ExternalTensor)
                    attached[name] = value.const_value
            written = writer.finish()
        return written, attached, pieces

    return run


def awaiting(wanted: dict[str, tuple[list[int], torch.dtype, bool]]) -> ir.Model:
    """A model of nothing but initializers that await their values, as `trace` leaves them."""
    values = []
    for name, (shape, dtype, transposed) in wanted.items():
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(TYPES[dtype]))
        if transposed:
            value.metadata_props[TRANSPOSED] = "1"
        values.append(value)
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


def stored(written: WeightsFile, tensor: ir.ExternalTensor, dtype: torch.dtype) -> torch.Tensor:
    assert tensor.offset is not None
    assert tensor.length is not None
    raw = written.path.read_bytes()[tensor.offset : tensor.offset + tensor.length]
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(tensor.shape.numpy())


# The bundle as exported


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_initializer_is_the_checkpoint_s_tensor(component: str, tiny_bundle: Path, tiny_source: Path) -> None:
    model = onnx.load(tiny_bundle / component / "main.onnx")
    marks = {
        value.name: {entry.key for entry in value.metadata_props} for value in model.graph.value_info
    }  # what refit and LoRA read to know which weights lie transposed
    seen = 0
    with open_source(str(tiny_source)).checkpoint(COMPONENTS[component]) as checkpoint:
        for initializer in model.graph.initializer:
            name = initializer.name
            if name not in checkpoint:
                name = TIED_NAMES.get(name, name)
                if name not in checkpoint:
                    continue
            tensor = checkpoint.load(name)
            expected = tensor.T if TRANSPOSED in marks[initializer.name] else tensor
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(initializer), expected.numpy())
            seen += tensor.numel()
    manifest = json.loads((tiny_bundle / "telecine.json").read_text())
    assert seen == manifest["components"][component]["parameters"] > 1000


@pytest.mark.parametrize("component", COMPONENTS)
def test_weights_of_the_network_all_keep_the_checkpoint_s_names(
    component: str, tiny_bundle: Path, tiny_source: Path
) -> None:
    model = onnx.load(tiny_bundle / component / "main.onnx", load_external_data=False)
    external = {tensor.name for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL}
    prefix = {"vae_encoder": "encoder.", "vae_decoder": "decoder."}.get(component, "")
    with open_source(str(tiny_source)).checkpoint(COMPONENTS[component]) as checkpoint:
        expected = {name for name in checkpoint.names() if name.startswith(prefix)}
    if component == "text_encoder":  # the checkpoint names T5's embedding by its other end
        expected = (expected - {"shared.weight"}) | {TIED_NAMES["shared.weight"]}
    assert external == expected


def test_transposed_weights_are_the_linear_layers(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "transformer" / "main.onnx", load_external_data=False)
    marked = {value.name for value in model.graph.value_info for entry in value.metadata_props}
    weights = {
        tensor.name
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.name.endswith(".weight") and "norm" not in tensor.name
    }
    assert len(marked) > 20
    # A Gemm transposes by an attribute, and keeps the checkpoint's layout.
    gemm = {node.input[1] for node in model.graph.node if node.op_type == "Gemm"}
    assert marked == weights - gemm
    assert not [node for node in model.graph.node if node.op_type == "Transpose" and set(node.input) & weights]


# One tensor at a time


@pytest.mark.parametrize("to", TYPES)
@pytest.mark.parametrize("stored_as", TYPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_types_are_cast_as_torch_casts(stored_as: torch.dtype, to: torch.dtype, transposed: bool, write: Write) -> None:
    torch.manual_seed(0)
    tensor = (torch.randn(37, 53) * torch.logspace(-9, 6, 53)).to(stored_as)  # subnormal and infinite in float16
    shape = [53, 37] if transposed else [37, 53]
    written, attached, _ = write({"w": tensor}, {"w": (shape, to, transposed)})
    expected = (tensor.T if transposed else tensor).to(to)
    assert torch.equal(stored(written, attached["w"], to), expected)
    assert attached["w"].dtype == TYPES[to]


def test_a_tensor_is_written_in_bounded_pieces(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "PIECE", 1000)
    tensor = torch.randn(70, 90, dtype=torch.float16)
    written, attached, pieces = write({"w": tensor}, {"w": ([90, 70], torch.float32, True)})
    assert max(pieces) <= 1000 * 4
    assert len(pieces) > 5
    assert sum(pieces) == tensor.numel() * 4
    assert torch.equal(stored(written, attached["w"], torch.float32), tensor.T.float())


def test_scalars_and_long_rows(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "PIECE", 16)
    scalar, row = torch.tensor(1000.0), torch.randn(1, 40)
    wanted = {"scalar": ([], torch.float32, False), "row": ([1, 40], torch.float32, False)}
    written, attached, _ = write({"scalar": scalar, "row": row}, wanted)
    assert stored(written, attached["scalar"], torch.float32) == 1000
    assert torch.equal(stored(written, attached["row"], torch.float32), row)
    assert written.parameters == 41


def test_large_tensors_start_on_a_page_and_the_hash_is_the_file_s(write: Write) -> None:
    large = torch.randn(LARGE // 4 + 1)
    checkpoint = {"a": torch.randn(3), "b": large, "c": torch.randn(5), "d": large + 1, "e": torch.randn(())}
    wanted = {name: (list(tensor.shape), torch.float32, False) for name, tensor in checkpoint.items()}
    written, attached, _ = write(checkpoint, wanted)
    offsets = {name: tensor.offset for name, tensor in attached.items()}
    assert [offsets[name] % PAGE for name in "bd"] == [0, 0]
    assert [offsets[name] % CACHE_LINE for name in "ace"] == [0, 0, 0]
    assert [offsets[name] % PAGE != 0 for name in "ce"] == [True, True]
    content = written.path.read_bytes()
    assert written.sha256 == hashlib.sha256(content).hexdigest()
    assert written.size == len(content)
    assert written.parameters == sum(tensor.numel() for tensor in checkpoint.values())
    assert all(torch.equal(stored(written, attached[name], torch.float32), checkpoint[name]) for name in checkpoint)


def test_graphs_of_one_component_share_their_tensors(write: Write) -> None:
    tensor = torch.randn(4, 6)
    plain, turned = ([4, 6], torch.float32, False), ([6, 4], torch.float32, True)
    written, _, pieces = write({"w": tensor}, {"w": plain}, {"w": plain}, {"w": turned})
    assert pieces == [96, 96]  # as it is, and transposed: once each
    assert written.parameters == 24


@pytest.mark.parametrize("stored_name", ["shared.weight", "encoder.embed_tokens.weight"])
@pytest.mark.parametrize("wanted_name", ["shared.weight", "encoder.embed_tokens.weight"])
def test_t5_s_embedding_is_found_by_either_name(stored_name: str, wanted_name: str, write: Write) -> None:
    tensor = torch.randn(5, 4)
    written, attached, _ = write({stored_name: tensor}, {wanted_name: ([5, 4], torch.float32, False)})
    assert torch.equal(stored(written, attached[wanted_name], torch.float32), tensor)


@pytest.mark.parametrize(
    ("tensors", "wanted", "problem"),
    [
        ({"w": torch.zeros(4, 6)}, ([6, 4], torch.float32, False), r"shape \[4, 6\]; expected \[6, 4\]"),
        # Shapes are told as the checkpoint has them, not as the graph does.
        ({"w": torch.zeros(4, 6)}, ([4, 6], torch.float32, True), r"shape \[4, 6\]; expected \[6, 4\]"),
        ({"w": torch.zeros(4, 6, 1)}, ([6, 4], torch.float32, True), r"shape \[4, 6, 1\]; expected \[4, 6\]"),
        ({"v": torch.zeros(4, 6)}, ([4, 6], torch.float32, False), "has no tensor w"),
        ({"w": torch.zeros(4, 6, dtype=torch.int8)}, ([4, 6], torch.float16, False), r"is torch\.int8"),
        ({"w": torch.zeros(4, 6).to(torch.float8_e4m3fn)}, ([4, 6], torch.float16, False), "is torch.float8_e4m3fn"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tensors: Any, wanted: Any, problem: str, write: Write) -> None:
    with pytest.raises(SourceError, match=problem):
        write(tensors, {"w": wanted})
