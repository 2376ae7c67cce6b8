"""Engines of a folder: the whole ones, oldest first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from telecine.engine import FORMAT, Sidecar, plan_path, sidecar_path
from telecine.engines_folder import list_engines


def write(folder: Path, key: str, *, modified: int) -> Path:
    """A plan of four bytes and its sidecar."""
    path = plan_path(folder, target="rtx-sm89", library_version="1.7", key=key, component="transformer", role="main")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"plan")
    sidecar = Sidecar(
        format=FORMAT, component="transformer", role="main", precision="fp16", target="rtx-sm89",
        library="tensorrt_rtx", library_version="1.7", platform="linux-x86_64", compute_capabilities=("8.9",),
        version_compatible=False, hardware_compatibility="NONE", key=key, plan_size=4, plan_sha256="", graph_sha256="",
        weights_sha256="", inputs=(), outputs=(), profiles=(), workloads=(), options={}, refit=False, stripped=False,
        weight_streaming=False, precisions={}, layers=1, fused_attention=None, build_seconds=1.0, build_peak_bytes=1,
    )  # fmt: skip
    sidecar_path(path).write_text(sidecar.dump())
    os.utime(sidecar_path(path), ns=(modified, modified))
    return path


def test_they_come_oldest_first(tmp_path: Path) -> None:
    paths = [write(tmp_path, key, modified=modified) for key, modified in (("b", 2), ("c", 3), ("a", 1))]
    assert [engine.plan for engine in list_engines(tmp_path)] == [paths[2], paths[0], paths[1]]
    assert [engine.sidecar.key for engine in list_engines(tmp_path)] == ["a", "b", "c"]


def test_a_folder_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert list_engines(tmp_path / "engines") == []


def test_what_is_not_whole_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut, lost, damaged, whole = (write(tmp_path, key, modified=1) for key in "abcd")
    cut.write_bytes(b"pla")
    lost.unlink()
    sidecar_path(damaged).write_text("{")
    assert [engine.plan for engine in list_engines(tmp_path)] == [whole]
    assert f"{lost} is no engine" in caplog.text
    assert f"{damaged} is no engine" in caplog.text
