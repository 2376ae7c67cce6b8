"""Weight files as people have them: whole, half downloaded, pickled, sharded."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from telecine.errors import SourceError
from telecine.safetensors_files import weight_files
from telecine_export.checkpoints.safetensors_files import SafetensorsCheckpoint

WEIGHTS = "diffusion_pytorch_model"


def open_folder(folder: Path) -> SafetensorsCheckpoint:
    return SafetensorsCheckpoint(weight_files(folder), folder)


def write_weights(path: Path, **tensors: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors or {"weight": torch.arange(6.0).reshape(2, 3)}, path)
    return path


def write_index(folder: Path, weight_map: Any, name: str = f"{WEIGHTS}.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def files_of(folder: Path) -> list[str]:
    return [file.name for file in weight_files(folder)]


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no safetensors"):
        open_folder(tmp_path)


class _Boom:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("unpickled"),))


@pytest.mark.parametrize("name", [f"{WEIGHTS}.bin", "model.pt", "model.pth", "model.ckpt"])
def test_a_pickle_is_refused_and_never_read(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(_Boom()))
    with pytest.raises(SourceError, match=rf"has {name}, a pickle, and no safetensors.*never unpickles"):
        open_folder(tmp_path)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(
    "names",
    [
        [f"{WEIGHTS}.safetensors", f"{WEIGHTS}.fp16.safetensors"],
        ["model.safetensors", "model.fp16.safetensors", "model.bf16.safetensors"],
        [f"{WEIGHTS}.safetensors", f"{WEIGHTS}.bin"],
        [f"{WEIGHTS}.fp16.safetensors"],  # all there is
        ["ltx-vae.safetensors"],
    ],
)
def test_the_file_without_a_variant_is_read(names: list[str], tmp_path: Path) -> None:
    for name in names:
        write_weights(tmp_path / name)
    assert files_of(tmp_path) == names[:1]


def test_shards_beat_nothing_and_a_variant_index_stays_unread(tmp_path: Path) -> None:
    for variant in ("", ".fp16"):
        for number in (1, 2):
            write_weights(tmp_path / f"{WEIGHTS}{variant}-0000{number}-of-00002.safetensors")
    names = [f"{WEIGHTS}-00001-of-00002.safetensors", f"{WEIGHTS}-00002-of-00002.safetensors"]
    fp16 = [name.replace(WEIGHTS, f"{WEIGHTS}.fp16") for name in names]
    write_index(tmp_path, {"a": fp16[0], "b": fp16[1]}, f"{WEIGHTS}.safetensors.index.fp16.json")
    assert files_of(tmp_path) == fp16  # the one index there is
    write_index(tmp_path, {"a": names[1], "b": names[0]})
    assert files_of(tmp_path) == names


def test_several_files_without_an_index(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        write_weights(tmp_path / name)
    with pytest.raises(SourceError, match=r"2 safetensors files and no index: a\.safetensors, b\.safetensors"):
        open_folder(tmp_path)


def test_a_sharded_checkpoint_reads_each_tensor_from_its_shard(tmp_path: Path) -> None:
    first, second = torch.randn(2, 3), torch.randn(4)
    write_weights(tmp_path / "model-00001-of-00002.safetensors", a=first)
    write_weights(tmp_path / "model-00002-of-00002.safetensors", b=second)
    write_index(
        tmp_path,
        {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
        "model.safetensors.index.json",
    )
    with open_folder(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.load("a"), first)
        assert torch.equal(checkpoint.load("b"), second)
        with pytest.raises(SourceError, match="has no tensor c"):
            checkpoint.load("c")


@pytest.mark.parametrize(
    ("weight_map", "problem"),
    [
        ({"a": f"{WEIGHTS}-00001-of-00002.safetensors", "b": "gone.safetensors"}, r"lacks gone\.safetensors"),
        ({}, "lacks every shard"),
        ([], "lacks every shard"),
        (None, "lacks every shard"),
        ({"a": 3}, "lacks 3"),
        ({"a": "../outside.safetensors"}, r"lacks \.\./outside\.safetensors"),
    ],
)
def test_an_index_that_does_not_fit_its_folder(weight_map: Any, problem: str, tmp_path: Path) -> None:
    write_weights(tmp_path / "outside.safetensors")
    write_weights(tmp_path / "part" / f"{WEIGHTS}-00001-of-00002.safetensors")
    write_index(tmp_path / "part", weight_map)
    with pytest.raises(SourceError, match=problem):
        open_folder(tmp_path / "part")


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_truncated_file(kept: int, tmp_path: Path) -> None:
    file = write_weights(tmp_path / f"{WEIGHTS}.safetensors")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(SourceError, match=r"cannot be read.*expected a whole safetensors file"):
        open_folder(tmp_path)


def test_a_git_lfs_pointer_is_no_safetensors(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3846774784\n"
    (tmp_path / f"{WEIGHTS}.safetensors").write_text(pointer)
    with pytest.raises(SourceError, match="expected a whole safetensors file"):
        open_folder(tmp_path)
