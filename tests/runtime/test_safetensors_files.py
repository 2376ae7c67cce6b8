"""Safetensors in NumPy against torch's reader."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from telecine.errors import SourceError
from telecine.safetensors_files import SafetensorsFiles

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 4)])
def test_values_are_torch_s(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {"odd": torch.randn(3).to(dtype), "a": torch.randn(shape).to(dtype), "z": torch.randn(2, 2).to(dtype)}
    save_file(tensors, tmp_path / "x.safetensors", {"key": "value"})
    files = SafetensorsFiles([tmp_path / "x.safetensors"], tmp_path)
    assert (set(files.names()), files.metadata) == (set(tensors), {"key": "value"})
    for name, tensor in tensors.items():
        assert files.shape(name) == tuple(tensor.shape)
        got = files.load(name)
        assert (got.dtype, got.shape) == (np.float32, tuple(tensor.shape))
        np.testing.assert_array_equal(got, tensor.float().numpy())


def test_shards_are_one(tmp_path: Path) -> None:
    for index in range(2):
        save_file({f"t{index}": torch.full((2,), float(index))}, tmp_path / f"{index}.safetensors")
    files = SafetensorsFiles([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], tmp_path)
    assert [files.load(f"t{index}").tolist() for index in range(2)] == [[0, 0], [1, 1]]


class TestRefused:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        save_file({"a": torch.ones(100), "whole": torch.ones(3, dtype=torch.int32)}, tmp_path / "x.safetensors")
        return tmp_path / "x.safetensors"

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="cannot be read"):
            SafetensorsFiles([tmp_path / "none.safetensors"], tmp_path)

    @pytest.mark.parametrize("size", [0, 4, 60, 300])
    def test_a_cut_file(self, size: int, file: Path) -> None:
        os.truncate(file, size)
        with pytest.raises(SourceError, match=r"x.safetensors cannot be read: .*whole safetensors"):
            SafetensorsFiles([file], file)

    def test_a_file_that_is_cut_later(self, file: Path) -> None:
        files = SafetensorsFiles([file], file)
        os.truncate(file, 300)
        with pytest.raises(SourceError, match="it was cut"):
            files.load("a")

    def test_integers(self, file: Path) -> None:
        with pytest.raises(SourceError, match="tensor whole of .* is I32; expected one of F32, F16, BF16"):
            SafetensorsFiles([file], file).load("whole")

    def test_a_name_that_is_not_there(self, file: Path) -> None:
        with pytest.raises(SourceError, match="has no tensor b"):
            SafetensorsFiles([file], file).shape("b")

    def test_a_pickle(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="is a pickle"):
            SafetensorsFiles([tmp_path / "lora.bin"], tmp_path)
