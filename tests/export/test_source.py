"""A source is a folder in diffusers' layout, or says what it is instead."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from telecine.errors import SourceError
from telecine_export.family import family_of
from telecine_export.source import Source, open_source


def test_a_folder_opens(tiny_source: Path) -> None:
    source = open_source(str(tiny_source))
    assert source == Source(root=tiny_source, pipeline_class="LTXPipeline")
    assert source.config("transformer")["num_layers"] == 2
    assert source.config("scheduler")["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    with source.checkpoint("transformer") as checkpoint:
        assert "proj_in.weight" in checkpoint
        assert "proj_in" not in checkpoint
        assert checkpoint.shape("proj_in.weight") == (64, 16) == tuple(checkpoint.load("proj_in.weight").shape)


@pytest.mark.parametrize("name", ["nowhere", "./no/where", "/no/where", "~nobody/model", "a/b/c"])
def test_a_path_that_does_not_exist_names_what_would(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"does not exist; expected .*hub id such as"):
        open_source(name)


def test_a_folder_without_model_index(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"model_index\.json is missing"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "cannot be read"),
        ("[]", "holds a list"),
        ("{}", "names no pipeline class"),
        ('{"_class_name": ["LTXPipeline"]}', "names no pipeline class"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_damaged_model_index(content: str | bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SourceError, match=problem):
        open_source(str(tmp_path))


def test_an_unknown_pipeline_class_lists_the_known(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    with pytest.raises(SourceError, match="is a WanPipeline; expected one of LTXPipeline"):
        family_of(open_source(str(tmp_path)))


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "scheduler"])
def test_a_component_without_its_configuration(component: str, tiny_source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_source, copy, copy_function=lambda a, b: Path(b).symlink_to(a))
    (removed,) = copy.glob(f"{component}/*config.json")
    removed.unlink()
    with pytest.raises(SourceError, match=rf"{component}/\w+\.json is missing"):
        open_source(str(copy)).config(component)


def test_a_revision_of_a_folder_is_refused(tiny_source: Path) -> None:
    with pytest.raises(SourceError, match="--revision v1 with the folder"):
        open_source(str(tiny_source), revision="v1")
