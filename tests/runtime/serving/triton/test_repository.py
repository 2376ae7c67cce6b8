"""The repository: whole or absent, and in need of nothing else."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doubles.plans import write_plan

from telecine.bundle import Bundle
from telecine.errors import EngineError, RequestError
from telecine.serving.triton import repository as module
from telecine.serving.triton.config import Placement
from telecine.serving.triton.repository import RepositoryOptions, is_repository, write_repository


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def test_it_holds_a_copy_of_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    copy = Bundle.open(shutil.copytree(bundle.root, tmp_path / "bundle"))
    assert write_repository(copy, tmp_path / "repository", RepositoryOptions(name="ltx", version=3)) == ["ltx"]
    version = tmp_path / "repository" / "ltx" / "3"
    assert sorted(entry.name for entry in version.iterdir()) == ["bundle", "model.py"]
    held, own = files(version / "bundle"), files(copy.root)
    assert set(held) == set(own)
    assert not set(held.values()) & set(own.values())  # no file by a second name
    shutil.rmtree(copy.root)
    Bundle.open(version / "bundle").check_weights()
    assert "class TritonPythonModel" in (version / "model.py").read_text()


def test_engines_come_along_where_they_may_run(bundle: Bundle, tmp_path: Path) -> None:
    plan = write_plan(bundle, "transformer", engines=tmp_path / "engines")
    for index, (options, expected) in enumerate(
        (
            ({}, True),
            ({"backend": "tensorrt", "placement": Placement(devices=("cuda:0",))}, True),
            ({"backend": "onnxruntime"}, False),
            ({"placement": Placement(devices=("cpu",))}, False),
        )
    ):
        write_repository(bundle, tmp_path / f"r{index}", RepositoryOptions(engines=tmp_path / "engines", **options))
        inside = tmp_path / f"r{index}" / "telecine/1/bundle/engines" / plan.relative_to(tmp_path / "engines")
        assert (inside.is_file(), inside.with_suffix(".json").is_file()) == (expected, expected), options


def test_a_packed_bundle_goes_without_weights(
    bundle: Bundle, tmp_path: Path, edited_bundle: Callable[..., Path]
) -> None:
    parts = {name: dataclasses.replace(part, packed=True) for name, part in bundle.manifest.components.items()}
    packed = Bundle.open(edited_bundle(bundle.root, components=parts))
    write_plan(packed, "transformer")
    write_repository(packed, tmp_path / "repository", RepositoryOptions(backend="tensorrt"))
    inside = tmp_path / "repository" / "telecine" / "1" / "bundle"
    assert Bundle.open(inside).manifest == packed.manifest
    assert not list(inside.rglob("weights.bin"))
    assert len(list(inside.rglob("*.plan"))) == 1


def test_a_failed_one_leaves_nothing(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Path] = []

    def copy(source: Path, target: Path) -> None:
        copied.append(target)
        if len(copied) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.shutil, "copyfile", copy)
    with pytest.raises(KeyboardInterrupt):
        write_repository(bundle, tmp_path / "repository", RepositoryOptions())
    assert list(tmp_path.iterdir()) == []


def test_only_a_repository_of_ours_is_replaced(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "repository"
    write_repository(bundle, target, RepositoryOptions(name="first"))
    with pytest.raises(RequestError, match="repository"):
        write_repository(bundle, target, RepositoryOptions(name="second"))
    assert is_repository(target)
    write_repository(bundle, target, RepositoryOptions(name="second"), overwrite=True)
    assert [model.name for model in target.iterdir()] == ["second"]
    foreign = target / "foreign" / "config.pbtxt"
    foreign.parent.mkdir()
    foreign.write_text('backend: "python"\n')
    assert not is_repository(target)
    with pytest.raises(RequestError):
        write_repository(bundle, target, RepositoryOptions(), overwrite=True)
    assert foreign.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../out"}, "the name '../out'; expected letters"),
        ({"name": ""}, "the name ''"),
        ({"version": 0}, "--model-version 0; expected 1 or more"),
        ({"concurrency": 0}, "--concurrency 0; expected 1 or more"),
        ({"backend": "torch"}, "backend 'torch'; expected one of auto, onnxruntime, tensorrt"),
        ({"backend": "tensorrt", "placement": Placement(devices=("cpu",))}, "backend 'tensorrt' on the CPU"),
        ({"backend": "tensorrt", "threads": 2}, "--threads 2 with backend 'tensorrt'"),
        ({"environment": "env"}, "environment env; expected an absolute path on the server"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        RepositoryOptions(**options)
    assert message in str(caught.value)


def test_engines_that_are_not_there_are_missed_before_anything_is_written(bundle: Bundle, tmp_path: Path) -> None:
    for options in (RepositoryOptions(backend="tensorrt"), RepositoryOptions(engines=tmp_path / "engines")):
        with pytest.raises(EngineError, match="holds no engines"):
            write_repository(bundle, tmp_path / "repository", options)
    assert list(tmp_path.iterdir()) == []
