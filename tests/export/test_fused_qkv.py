"""`--fuse-qkv`: the same numbers from fewer products, for every family, and refused where there is nothing to fuse."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from lora_files import factors, write_lora
from onnxruntime import InferenceSession

from telecine.bundle import Bundle
from telecine.errors import BundleError, SourceError
from telecine.graph_weights import GraphWeights
from telecine.lora import Lora
from telecine.manifest import FILE_NAME, Component
from telecine.weight_changes import WeightChanges
from telecine_export.checkpoints.joined import Joined
from telecine_export.export import Progress, export_bundle, export_component
from telecine_export.families.t5 import text_encoder
from telecine_export.family import family_of
from telecine_export.fused_qkv import fuse_qkv
from telecine_export.source import open_source
from telecine_export.trace import trace
from telecine_export.verify import verify_bundle


class Fused(NamedTuple):
    """A source, its bundle, and the folder and manifest entry of the same transformer with fused projections."""

    source: Path
    bundle: Path
    folder: Path
    component: Component


@pytest.fixture(scope="module", params=["ltx", "cogvideox", pytest.param("ltx2", marks=pytest.mark.slow)])
def fused(
    request: pytest.FixtureRequest, tiny_source: Path, tiny_bundle: Path, cogvideox: Callable[..., Any],
    ltx2: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory,
) -> Fused:  # fmt: skip
    families: dict[str, Callable[[], Any]] = {
        "ltx": lambda: (tiny_source, tiny_bundle),
        "cogvideox": lambda: cogvideox("5b"),
        "ltx2": lambda: ltx2("2.3")[::2],
    }
    source, bundle = families[request.param]()
    opened = open_source(str(source))
    spec = next(spec for spec in family_of(opened).graphs(opened) if spec.component == "transformer")
    folder = tmp_path_factory.mktemp("fused")
    component = export_component(opened, folder, [fuse_qkv(spec)], precision="fp32", opset=23, progress=Progress())
    return Fused(source, bundle, folder / "transformer", component)


def graph(folder: Path) -> onnx.ModelProto:
    return onnx.load(str(folder / "main.onnx"))


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Random inputs of sizes that were not traced."""
    sizes = {
        "batch": 3, "tokens": 30, "timestep_tokens": 1, "text_length": 9, "rope_positions": 30,
        "frame_groups": 3, "rows": 5, "columns": 2, "audio_tokens": 7, "cross_timestep_tokens": 1,
    }  # fmt: skip
    random = np.random.default_rng(0)
    made = {}
    for value in model.graph.input:
        shape = []
        for dim in value.type.tensor_type.shape.dim:
            scale, _, symbol = dim.dim_param.rpartition("*")
            shape.append(dim.dim_value or int(scale or 1) * sizes[symbol])
        integers = value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT
        made[value.name] = np.zeros(shape, np.int32) if integers else random.standard_normal(shape).astype(np.float32)
    return made


def test_fused_products_give_the_same_numbers(fused: Fused) -> None:
    plain = fused.bundle / "transformer"
    given = feeds(graph(plain))
    results = [
        InferenceSession(str(folder / "main.onnx"), providers=["CPUExecutionProvider"]).run(None, given)[0]
        for folder in (plain, fused.folder)
    ]
    assert results[0].std() > 0.1
    # The same products and sums; a library may block a wider matrix otherwise.
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=2e-6)


def test_fused_weights_are_the_checkpoints_bits(fused: Fused) -> None:
    source, plain = fused.source, fused.bundle / "transformer"
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in graph(fused.folder).graph.initializer}
    joints = [name for name in weights if ".to_qkv." in name or ".to_kv." in name]
    assert not [name for name in weights if ".to_k." in name or ".to_v." in name]
    with open_source(str(source)).checkpoint("transformer") as checkpoint:
        for name in joints:
            parts = ("to_q", "to_k", "to_v") if ".to_qkv." in name else ("to_k", "to_v")
            joint = "to_qkv" if ".to_qkv." in name else "to_kv"
            expected = torch.cat([checkpoint.load(name.replace(joint, part)) for part in parts]).numpy()
            np.testing.assert_array_equal(weights[name], expected.T if expected.ndim == 2 else expected)
    products = [
        sum(node.op_type in ("MatMul", "Gemm") for node in graph(folder).graph.node) for folder in (plain, fused.folder)
    ]
    assert products[1] == products[0] - 2 * len([name for name in joints if name.endswith("to_qkv.weight")]) - len(
        [name for name in joints if name.endswith("to_kv.weight")]
    )
    assert sum((folder / "weights.bin").stat().st_size for folder in (plain,)) == pytest.approx(
        (fused.folder / "weights.bin").stat().st_size, rel=0.1
    )


@pytest.fixture(scope="module")
def fused_bundle(fused: Fused, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("fused-bundle") / "bundle"
    shutil.copytree(fused.bundle, bundle, ignore=shutil.ignore_patterns("transformer"))
    shutil.copytree(fused.folder, bundle / "transformer")
    manifest = Bundle.open(fused.bundle).manifest
    components = manifest.components | {"transformer": fused.component}
    (bundle / FILE_NAME).write_text(dataclasses.replace(manifest, components=components).dump())
    return bundle


def test_a_fused_bundle_is_verified_against_its_source(fused: Fused, fused_bundle: Path) -> None:
    report = verify_bundle(fused_bundle, open_source(str(fused.source)), stages=["transformer"])
    assert report.passed, report.stages


def test_a_lora_acts_on_its_rows_of_a_fused_weight(fused: Fused, fused_bundle: Path, tmp_path: Path) -> None:
    """The same bits as in a bundle that is not fused: of what the LoRA has factors for, and of what it has not."""
    layers = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn1.to_v", "transformer_blocks.1.ff.net.2")
    file = write_lora(tmp_path / "lora.safetensors", factors(fused.bundle, layers=layers))
    plain, joined = (_changed(bundle, loras=[Lora(file=file, scale=0.5)]) for bundle in (fused.bundle, fused_bundle))
    assert set(plain) == {f"{layer}.weight" for layer in layers}
    assert set(joined) == {f"transformer_blocks.{block}.attn1.to_qkv.weight" for block in (0, 1)} | {
        "transformer_blocks.1.ff.net.2.weight"
    }
    own = GraphWeights.open(Bundle.open(fused.bundle), "transformer")
    for block in (0, 1):
        names = [f"transformer_blocks.{block}.attn1.{part}.weight" for part in ("to_q", "to_k", "to_v")]
        parts = [plain[name] if name in plain else own.store(name, own.load(name))[name] for name in names]
        # Linear layers are stored transposed: rows of the checkpoint's weight are columns.
        np.testing.assert_array_equal(
            joined[f"transformer_blocks.{block}.attn1.to_qkv.weight"], np.concatenate(parts, axis=1)
        )


def test_a_fine_tune_fills_a_fused_bundle(fused: Fused, fused_bundle: Path) -> None:
    """The source's own weights, by the names of its separate projections, give back the bundle's bits."""
    changes = WeightChanges().with_tune(Bundle.open(fused_bundle), "transformer", fused.source / "transformer")
    weights = GraphWeights.open(Bundle.open(fused_bundle), "transformer")
    for name, values in changes.values(Bundle.open(fused_bundle), "transformer", "main").items():
        np.testing.assert_array_equal(values, weights.initializer(name).read())


def test_a_reference_must_be_fused_alike(tiny_source: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has a transformer without joined projections; expected one with them"):
        export_bundle(
            open_source(str(tiny_source)), tmp_path / "out", precision="fp8", fuse=True, reference=tiny_bundle
        )


def _changed(bundle: Path, loras: list[Lora]) -> dict[str, np.ndarray]:
    opened = Bundle.open(bundle)
    return WeightChanges().with_loras(opened, loras).values(opened, "transformer", "main")


def test_diffusers_fuses_the_same_way(cogvideox: Callable[..., Any]) -> None:
    """`fuse_qkv_projections` of the model itself: our joint weights are its own."""
    source, _ = cogvideox("5b")
    model: Any = CogVideoXTransformer3DModel.from_pretrained(source / "transformer")
    with torch.no_grad():
        model.fuse_qkv_projections()
    with Joined(open_source(str(source)).checkpoint("transformer")) as checkpoint:
        for kind in ("weight", "bias"):
            name = f"transformer_blocks.1.attn1.to_qkv.{kind}"
            assert name in checkpoint
            expected = model.get_parameter(name)
            assert checkpoint.shape(name) == tuple(expected.shape)
            assert torch.equal(checkpoint.load(name), expected)
            assert checkpoint.stored_as(name) == "F32"
        assert "transformer_blocks.1.attn2.to_qkv.weight" not in checkpoint
        assert "to_qkv.weight" not in checkpoint


def test_a_module_with_nothing_to_fuse_is_refused(tiny_source: Path) -> None:
    spec = text_encoder(open_source(str(tiny_source)).config("text_encoder"))
    with pytest.raises(SourceError, match="--fuse-qkv for the text_encoder; expected attention"):
        trace(fuse_qkv(spec), opset=23)
