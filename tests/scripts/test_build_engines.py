"""`make build-engines`: what is done is not done again, and what it does not know it does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import build_engines
import make_wheelhouse
import pytest

SOURCE = ("model_index.json", "transformer/config.json")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands of telecine that are run; an export leaves a manifest."""
    ran: list[list[str]] = []

    def run(stage: str, words: list[str]) -> None:
        ran.append(words)
        if words[0] == "export":
            bundle = Path(words[2])
            bundle.mkdir(parents=True, exist_ok=True)
            (bundle / "telecine.json").write_text("{}")

    monkeypatch.setattr(build_engines, "run", run)
    monkeypatch.setattr(build_engines, "ROOT", tmp_path)
    monkeypatch.setattr(build_engines, "has_gpu", lambda: False)
    return ran


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(*words: str) -> None:
        monkeypatch.setattr("sys.argv", ["build_engines.py", *words])
        build_engines.main()

    return run


def test_the_demo_model_without_a_gpu(
    commands: list[list[str]], call: Callable[..., None], capsys: Any, tmp_path: Path
) -> None:
    call()
    export, verify, build = commands
    bundle = str(tmp_path / "bundles" / "demo-fp32")
    assert export == ["export", str(build_engines.CHECKPOINT), bundle, "--precision", "fp32", "--overwrite"]
    assert verify == ["verify", bundle, str(build_engines.CHECKPOINT)]
    assert build == [
        "build", bundle, "--target", "rtx-sm89", "--target", "rtx-sm120", "--workload", "96x96x17",
    ]  # fmt: skip
    assert "has no GPU: nothing of this was run" in capsys.readouterr().err


def test_a_gpu_is_built_for(commands: list[list[str]], call: Callable[..., None], monkeypatch: Any) -> None:
    monkeypatch.setattr(build_engines, "has_gpu", lambda: True)
    call("--target", "")
    assert commands[-1][2:4] == ["--target", "local"]


def test_what_is_asked_for_is_passed_on(commands: list[list[str]], call: Callable[..., None]) -> None:
    call("--model", "owner/name", "--target", "rtx-sm86 trt-sm90", "--workloads", "64x64x9 96x96x9", "--", "--refit")
    assert commands[-1][2:] == [
        "--target", "rtx-sm86", "--target", "trt-sm90", "--workload", "64x64x9", "--workload", "96x96x9", "--refit",
    ]  # fmt: skip


def test_what_is_done_is_not_done_again(commands: list[list[str]], call: Callable[..., None], tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in SOURCE:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("{}")
    call("--model", str(source))
    call("--model", str(source))
    assert [words[0] for words in commands] == ["export", "verify", "build", "build"]
    commands.clear()
    call("--model", str(source), "--precision", "fp16")  # another bundle
    (source / SOURCE[1]).write_text("{ }")
    call("--model", str(source))
    assert [words[0] for words in commands] == ["export", "verify", "build"] * 2


def test_an_interrupted_verify_runs_again(
    commands: list[list[str]], call: Callable[..., None], monkeypatch: Any
) -> None:
    run = build_engines.run

    def fail(stage: str, words: list[str]) -> None:
        run(stage, words)
        if stage == "verify":
            raise SystemExit(1)

    monkeypatch.setattr(build_engines, "run", fail)
    with pytest.raises(SystemExit):
        call()
    monkeypatch.setattr(build_engines, "run", run)
    call()
    assert [words[0] for words in commands] == ["export", "verify", "verify", "build"]


def test_a_failing_command_ends_it_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_engines, "TELECINE", ["false"])
    with pytest.raises(SystemExit) as stopped:
        build_engines.run("export", ["export"])
    assert stopped.value.code == 1


def test_a_wheelhouse_replaces_wheels_only(tmp_path: Path) -> None:
    (tmp_path / "a.whl").touch()
    assert make_wheelhouse.is_wheelhouse(tmp_path)
    (tmp_path / "thesis.tex").touch()
    assert not make_wheelhouse.is_wheelhouse(tmp_path)


@pytest.mark.slow
def test_a_box_without_a_network_installs_from_the_wheelhouse(tmp_path: Path) -> None:
    house, extra = tmp_path / "house", "onnxruntime,tensorrt-rtx"
    script = Path(make_wheelhouse.__file__)
    made = run(sys.executable, script, "--extra", extra, "--out", house)
    install = f'pip install --no-index --find-links {house} "telecine[{extra}]"'
    assert made.splitlines()[-1] == install
    names = {path.name.split("-")[0] for path in house.iterdir()}
    assert names >= {"telecine", "tensorrt_rtx", "cuda_bindings", "numpy", "onnxruntime"}
    box = tmp_path / "box"
    run(sys.executable, "-m", "venv", box)
    run("sh", "-c", f"{box}/bin/{install}")
    code = "import telecine, tensorrt_rtx; print(tensorrt_rtx.__version__)"
    assert run(box / "bin" / "python", "-c", code).startswith("1.")


def run(*command: object) -> str:
    """What a command prints, run away from this checkout."""
    away = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # The script itself needs telecine, which a box gets from its wheels.
    environment = away | ({"PYTHONPATH": os.pathsep.join(sys.path)} if command[0] == sys.executable else {})
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, env=environment).stdout
