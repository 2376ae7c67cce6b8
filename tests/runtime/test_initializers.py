"""The reader of initializers against the onnx package."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from telecine.bundle import Bundle
from telecine.errors import BundleError
from telecine.initializers import read_initializers

onnx = pytest.importorskip("onnx")


@pytest.mark.parametrize("component", ["text_encoder", "transformer", "vae_encoder", "vae_decoder"])
def test_every_initializer_of_a_bundle(tiny_bundle: Path, component: str) -> None:
    bundle = Bundle.open(tiny_bundle)
    path = bundle.path(bundle.graph(component).file)
    found = read_initializers(path)
    expected = {each.name: each for each in onnx.load(path).graph.initializer}
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        values = onnx.numpy_helper.to_array(tensor)
        assert (found[name].shape, found[name].holds(values.dtype)) == (values.shape, True)
        np.testing.assert_array_equal(found[name].read(), values)


def write(path: Path, *tensors: onnx.TensorProto) -> Path:
    graph = onnx.helper.make_graph([], "graph", [], [], initializer=list(tensors))
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return path


def inline(name: str, kind: int, shape: tuple[int, ...], content: bytes) -> onnx.TensorProto:
    return onnx.helper.make_tensor(name, kind, shape, content, raw=True)


@pytest.mark.parametrize(
    ("kind", "name", "bits"),
    [
        (onnx.TensorProto.FLOAT16, "float16", "float16"),
        (onnx.TensorProto.BFLOAT16, "bfloat16", "uint16"),
        (onnx.TensorProto.FLOAT8E4M3FN, "float8e4m3fn", "uint8"),
        (onnx.TensorProto.INT64, "int64", "int64"),
        (onnx.TensorProto.BOOL, "bool", "bool"),
    ],
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 200)])
def test_types_and_shapes(tmp_path: Path, kind: int, name: str, bits: str, shape: tuple[int, ...]) -> None:
    values = (np.arange(np.prod(shape, dtype=int)) % 2).astype(bits).reshape(shape)
    (found,) = read_initializers(write(tmp_path / "main.onnx", inline("x", kind, shape, values.tobytes()))).values()
    assert (found.dtype, found.shape, found.bits) == (name, shape, np.dtype(bits))
    assert found.holds(np.dtype(bits))
    assert not found.holds(np.dtype("float64"))
    np.testing.assert_array_equal(found.read(), values)


def external(location: str, length: int = 8) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="x", data_type=onnx.TensorProto.FLOAT, dims=[2])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(length)}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (external("../weights.bin"), "lies outside of the bundle"),
        (external("/etc/passwd"), "lies outside of the bundle"),
        (external("weights.bin", length=7), "x is not 8 bytes"),
        (onnx.TensorProto(name="x", data_type=1, dims=[2], raw_data=b"1234"), "x is not 8 bytes"),
        (onnx.TensorProto(name="x", data_type=1, dims=[2], float_data=[1, 2]), "x is not 8 bytes"),
        (onnx.TensorProto(name="x", data_type=8, dims=[1]), "is not an ONNX graph as telecine writes it"),
    ],
)
def test_what_export_does_not_write(tmp_path: Path, tensor: onnx.TensorProto, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        read_initializers(write(tmp_path / "main.onnx", tensor))


def test_files_that_are_cut(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle / "text_encoder", tmp_path / "text_encoder"))
    found = read_initializers(folder / "main.onnx")
    name = max(found, key=lambda name: found[name].offset)
    (folder / "weights.bin").write_bytes((folder / "weights.bin").read_bytes()[: found[name].offset])
    with pytest.raises(BundleError, match=f"does not hold {name}"):
        found[name].read()
    graph = (folder / "main.onnx").read_bytes()
    (folder / "main.onnx").write_bytes(graph[: len(graph) // 2])
    with pytest.raises(BundleError, match="is not an ONNX graph"):
        read_initializers(folder / "main.onnx")
    with pytest.raises(BundleError, match="cannot be read"):
        read_initializers(folder / "other.onnx")
