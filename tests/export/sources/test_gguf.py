"""GGUF tensors dequantise to ggml's values; diffusers' own dequantisation is the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from diffusers.quantizers.gguf.utils import dequantize_functions
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from telecine.errors import SourceError
from telecine_export.checkpoints.gguf_file import PLAIN, QUANTISED, GgufCheckpoint
from telecine_export.source import open_source

Write = Callable[..., Path]
# Where a block has its float16 scales: random bytes there would be infinities.
SCALES_AT = {
    "Q8_0": [0], "Q5_0": [0], "Q5_1": [0, 2], "Q4_0": [0], "Q4_1": [0, 2], "IQ4_NL": [0], "IQ4_XS": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "BF16": [],
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_gguf(tensors: dict[str, tuple[np.ndarray, Kind]], name: str = "model.gguf") -> Path:
        writer = gguf.GGUFWriter(tmp_path / name, "ltxv")
        for key, (values, kind) in tensors.items():
            writer.add_tensor(key, values, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return write_gguf


def random_blocks(kind: str, rows: int, blocks: int) -> np.ndarray:
    """(rows, bytes): every bit pattern of codes and inner scales is one that a quantiser may write."""
    rng = np.random.default_rng(0)
    size = gguf.GGML_QUANT_SIZES[Kind[kind]][1]
    if kind == "BF16":
        return quants.quantize(rng.standard_normal((rows, blocks), np.float32), Kind.BF16)
    values = rng.integers(0, 256, (rows, blocks, size), np.uint8)
    for offset in SCALES_AT[kind]:
        scale = rng.standard_normal((rows, blocks, 1)).astype(np.float16)
        values[..., offset : offset + 2] = scale.view(np.uint8)
    return values.reshape(rows, -1)


@pytest.mark.parametrize("kind", QUANTISED)
def test_every_quantisation_gives_diffusers_values(kind: str, write: Write) -> None:
    block_size, type_size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    packed = random_blocks(kind, rows=5, blocks=3)
    rows = (5, packed.shape[1] // type_size * block_size)
    with GgufCheckpoint(write({"a.weight": (packed, Kind[kind])})) as checkpoint:
        assert checkpoint.formats() == kind
        assert checkpoint.shape("a.weight") == rows
        got = checkpoint.load("a.weight")
    assert (got.dtype, tuple(got.shape)) == (torch.float32, rows)
    blocks = torch.from_numpy(packed).reshape(-1, type_size)
    theirs = dequantize_functions[Kind[kind]](blocks, block_size, type_size, dtype=torch.float32)
    # Products of three float32 factors, multiplied in another order.
    torch.testing.assert_close(got, theirs.float().reshape(rows), rtol=1e-6, atol=1e-6)
    assert got.std() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_plain_tensors_keep_their_type_and_bits(dtype: Any, write: Write) -> None:
    values = np.random.default_rng(0).standard_normal((3, 2, 7)).astype(dtype)
    kind = Kind.F32 if dtype == "float32" else Kind.F16
    with GgufCheckpoint(write({"a": (values, kind), "b": (values[0, 0], kind)})) as checkpoint:
        assert checkpoint.formats() in PLAIN
        assert (checkpoint.shape("a"), checkpoint.shape("b")) == ((3, 2, 7), (7,))
        np.testing.assert_array_equal(checkpoint.load("a").numpy(), values)
        np.testing.assert_array_equal(checkpoint.load("b").numpy(), values[0, 0])
        with pytest.raises(SourceError, match=r"model\.gguf has no tensor c"):
            checkpoint.load("c")


@pytest.mark.parametrize("original", [True, False])
def test_a_transformer_over_a_base_source(original: bool, write: Write, layouts: Any, tiny_source: Path) -> None:
    """Q8_0 where rows are whole blocks and float32 elsewhere, as the published files are; either spelling of names."""
    base = open_source(str(tiny_source))
    with base.checkpoint("transformer") as checkpoint:
        weights = {name: checkpoint.load(name).numpy() for name in checkpoint.names()}
    quantised = {name for name, values in weights.items() if values.ndim == 2 and values.shape[1] % 32 == 0}
    assert 20 < len(quantised) < len(weights)
    tensors = {
        layouts.transformer(name) if original else name: (
            (quants.quantize(values, Kind.Q8_0), Kind.Q8_0) if name in quantised else (values, Kind.F32)
        )
        for name, values in weights.items()
    }
    source = open_source(str(tiny_source), transformer=str(write(tensors)))
    assert source.config("transformer") == base.config("transformer")
    assert "(F32, Q8_0)" in source.describe()[1]
    with source.checkpoint("transformer") as checkpoint:
        assert set(checkpoint.names()) == set(weights)
        for name, values in weights.items():
            got = checkpoint.load(name).numpy()
            blocks = np.abs(values.reshape(-1, 32)).max(axis=1, keepdims=True) if name in quantised else 0
            # Half of a 127th of the block's largest, and the float16 rounding of that step times at most 127.
            bound = (
                np.broadcast_to(blocks * (0.5 / 127 + 2**-11), values.reshape(-1, 32).shape) if name in quantised else 0
            )
            assert (np.abs(got - values).reshape(-1, 32 if name in quantised else values.size) <= bound).all(), name


def test_a_gguf_file_is_no_whole_model(write: Write) -> None:
    file = write({"patchify_proj.weight": (np.zeros((4, 32), np.float32), Kind.F32)})
    with pytest.raises(SourceError, match=r"has no vae; .*pass this file as --transformer"):
        open_source(str(file))


def test_an_unknown_quantisation_is_refused_when_it_is_opened(write: Write) -> None:
    file = write({"a": (np.zeros((2, 66), np.uint8), Kind.IQ2_XXS)})
    with pytest.raises(SourceError, match="tensors as IQ2_XXS; expected little-endian F32.*another quantisation"):
        GgufCheckpoint(file)


@pytest.mark.parametrize("kept", [0, 4, 20, 60, 200, -1])
def test_a_truncated_file(kept: int, write: Write) -> None:
    file = write({"a.weight": (np.ones((40, 64), np.float32), Kind.F32)})
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(SourceError, match="cannot be read.*expected a whole GGUF file"):
        GgufCheckpoint(file)


def test_bytes_that_are_no_gguf(tmp_path: Path, tiny_source: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"<html>" * 100)
    with pytest.raises(SourceError, match="cannot be read"):
        open_source(str(tiny_source), transformer=str(tmp_path / "model.gguf"))
