"""A model for each graph: files where Triton's backends look for them, configurations of what the files hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from doubles.plans import write_plan

from telecine.bundle import Bundle
from telecine.errors import BundleError, EngineError, RequestError
from telecine.serving.triton.config import DATA_TYPES, Placement
from telecine.serving.triton.graphs import graph_models
from telecine.serving.triton.repository import RepositoryOptions, write_repository

COMPONENTS = (
    "denoise_step", "decoder_latents", "uint8_frames", "text_encoder", "transformer", "vae_decoder", "vae_encoder",
)  # fmt: skip
# Of ONNX Runtime's types, those that the graphs have.
TENSORS = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(uint8)": "uint8"}


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def models(bundle: Bundle, tmp_path: Path) -> Callable[..., Any]:
    """`models("tensorrt")`: the models of every graph, by name."""

    def make(backend: str, bundle: Bundle = bundle, **options: Any) -> dict[str, Any]:
        options = {"placement": Placement(), "engines": tmp_path / "engines", **options}
        return {model.name: model for model in graph_models(bundle, backend, name="ltx", **options)}

    return make


def with_transformer(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle with other values of a component."""
    parts = bundle.manifest.components
    changed = parts | {"transformer": dataclasses.replace(parts["transformer"], **changes)}
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, components=changed))


def tensors(entries: list[dict[str, Any]]) -> dict[str, tuple[str, list[int]]]:
    return {entry["name"]: (entry["data_type"], entry["dims"]) for entry in entries}


def test_onnx_graphs_run_from_where_triton_has_them(bundle: Bundle, tmp_path: Path) -> None:
    """Each loads with its weights beside it, and its tensors are those of its configuration."""
    options = RepositoryOptions(name="ltx", graphs=("onnxruntime",))
    assert set(write_repository(bundle, tmp_path / "repository", options)) == {"ltx", *(f"ltx_{c}" for c in COMPONENTS)}
    models = graph_models(bundle, "onnxruntime", name="ltx", engines=tmp_path, placement=Placement())
    for model in models:
        assert model.config["default_model_filename"] == "model.onnx"
        path = tmp_path / "repository" / model.name / "1" / "model.onnx" / "model.onnx"
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for found, entries in ((session.get_inputs(), "input"), (session.get_outputs(), "output")):
            expected = {
                each.name: (
                    DATA_TYPES[TENSORS[each.type]],
                    [size if isinstance(size, int) else -1 for size in each.shape],
                )
                for each in found
            }
            assert tensors(model.config[entries]) == expected
    ids = np.zeros((1, 4), np.int64)
    text = onnxruntime.InferenceSession(tmp_path / "repository/ltx_text_encoder/1/model.onnx/model.onnx")
    original = onnxruntime.InferenceSession(bundle.root / "text_encoder" / "main.onnx")
    np.testing.assert_array_equal(text.run(None, {"input_ids": ids})[0], original.run(None, {"input_ids": ids})[0])


def test_triton_reads_their_configurations(bundle: Bundle, tmp_path: Path, call: Callable[..., Any]) -> None:
    for component in COMPONENTS:
        write_plan(bundle, component, engines=tmp_path / "engines")
    options = RepositoryOptions(graphs=("onnxruntime", "tensorrt"), engines=tmp_path / "engines")
    names = write_repository(bundle, tmp_path / "repository", options)
    assert len(names) == 1 + 2 * len(COMPONENTS)
    for name in names[1:]:
        read = call("parse", (tmp_path / "repository" / name / "config.pbtxt").read_text())
        assert read["name"] == name
        assert read["backend"] == ("tensorrt" if name.endswith("_tensorrt") else "onnxruntime")
        for file in {read["default_model_filename"], *read.get("cc_model_filenames", {}).values()}:
            assert (tmp_path / "repository" / name / "1" / file).exists()


def test_fp8_graphs_get_basic_optimisations(bundle: Bundle, models: Callable[..., Any]) -> None:
    assert "optimization" not in models("onnxruntime")["ltx_transformer"].config
    made = models("onnxruntime", with_transformer(bundle, precision="fp8"))
    assert made["ltx_transformer"].config["optimization"] == {"graph": {"level": -1}}
    assert "optimization" not in made["ltx_vae_decoder"].config


def test_the_newest_plan_for_each_gpu_with_all_its_profiles(
    bundle: Bundle, models: Callable[..., Any], tmp_path: Path
) -> None:
    engines = tmp_path / "engines"
    hopper: dict[str, Any] = {"capabilities": ("9.0",), "target": "trt-sm90"}
    for component in COMPONENTS:
        write_plan(bundle, component, engines=engines, profiles=({}, {}), key="old")
        new = write_plan(bundle, component, engines=engines, profiles=({}, {}), key="new")
        other = write_plan(bundle, component, engines=engines, profiles=({}, {}), **hopper)
        write_plan(bundle, component, engines=engines, library="tensorrt_rtx", target="rtx-sm89", key="rtx")
        write_plan(bundle, component, engines=engines, key="stripped", stripped=True)
        write_plan(bundle, component, engines=engines, key="foreign", weights_sha256="0" * 64)
    model = models("tensorrt")[f"ltx_{COMPONENTS[-1]}_tensorrt"]
    assert model.files == {Path("model.sm89.plan"): new, Path("model.sm90.plan"): other}
    assert model.config["cc_model_filenames"] == [
        {"key": "8.9", "value": "model.sm89.plan"},
        {"key": "9.0", "value": "model.sm90.plan"},
    ]
    assert model.config["default_model_filename"] == "model.sm90.plan"
    assert model.config["instance_group"][0]["profile"] == ["0", "1"]
    graph = bundle.graph(COMPONENTS[-1])
    assert set(tensors(model.config["input"])) == {spec.name for spec in graph.inputs}


def test_plans_with_other_numbers_of_profiles_are_refused(
    bundle: Bundle, models: Callable[..., Any], tmp_path: Path
) -> None:
    for component in COMPONENTS:
        write_plan(bundle, component, engines=tmp_path / "engines")
    hopper: dict[str, Any] = {"capabilities": ("9.0",), "target": "trt-sm90"}
    write_plan(bundle, "transformer", engines=tmp_path / "engines", profiles=({}, {}), **hopper)
    with pytest.raises(EngineError, match="plans for ltx_transformer_tensorrt with 1 and 2 profiles"):
        models("tensorrt")


def test_what_cannot_be_is_refused(bundle: Bundle, models: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="graphs for 'openvino'; expected one of onnxruntime, tensorrt"):
        models("openvino")
    with pytest.raises(RequestError, match="graphs for tensorrt on the CPU"):
        models("tensorrt", placement=Placement(devices=("cpu",)))
    write_plan(bundle, "text_encoder", engines=tmp_path / "engines", library="tensorrt_rtx")
    with pytest.raises(EngineError, match="no plan for ltx_text_encoder_tensorrt"):
        models("tensorrt")
    with pytest.raises(BundleError, match="holds transformer as engines only"):
        models("onnxruntime", with_transformer(bundle, packed=True))
