"""telecine build and telecine pack: options to requests, what goes to stdout and stderr, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from telecine.bundle import Bundle
from telecine.cli import main

pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def run(tiny_bundle: Path, tmp_path: Path) -> Any:
    """`run("--target", ...)`: telecine build of the text encoder, the smallest, beside the bundle."""

    def call(*options: str) -> Result:
        command = ["build", str(tiny_bundle), "--component", "text_encoder", "--engines", str(tmp_path / "engines")]
        return CliRunner().invoke(main, [*command, *options])

    return call


def test_plans_go_to_stdout_and_the_rest_to_stderr(run: Any, tmp_path: Path) -> None:
    done = run("--target", "rtx-sm89", "--workload", "64x96x9@b2")
    assert done.exit_code == 0, done.stderr
    (plan,) = (tmp_path / "engines").rglob("*.plan")
    assert done.stdout == f"{plan}\n"
    before, after = done.stderr.split("building text_encoder.main for rtx-sm89\n")
    assert "workloads: 64x96x9@b2" in before
    assert "text_encoder.main fp32 for rtx-sm89: about " in before
    assert "profile 0: batch 2, text_length 1..256 (128)" in before
    assert "layers, tensors: " in after
    assert "1 plans built, 0 were there" in after
    assert "rtx-sm89: opens on GPUs of compute capability 8.9, linux-x86_64, with tensorrt_rtx" in after
    again = run("--target", "rtx-sm89", "--workload", "64x96x9@b2", "--json")
    (entry,) = json.loads(again.stdout)
    assert entry["plan"] == str(plan)
    assert entry["built"] is False
    assert entry["precisions"]["FLOAT"] > 20


def test_a_dry_run_prints_and_builds_nothing(run: Any, tmp_path: Path) -> None:
    options = ("--target", "rtx-sm89+sm120", "--target", "rtx-sm86", "--workload", "64x96x9", "--dry-run")
    done = run(*options)
    assert done.exit_code == 0, done.stderr
    assert "text_encoder.main fp32 for rtx-sm89+sm120: about " in done.stdout
    assert "text_encoder.main fp32 for rtx-sm86: about " in done.stdout
    plans = json.loads(run(*options, "--json").stdout)
    assert [plan["target"] for plan in plans] == ["rtx-sm89+sm120", "rtx-sm86"]
    assert plans[0]["profiles"] == [{"input_ids": {"min": [1, 1], "opt": [1, 128], "max": [1, 256]}}]
    assert plans[0]["expected_activation_bytes"] > 100_000
    assert plans[0]["built"] is False
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "rtx-sm90"), "Use trt-sm90, on that GPU"),
        (("--target", "rtx-sm89", "--timing-cache", "cache"), "--timing-cache for rtx-sm89"),
        (("--target", "rtx-sm89", "--workload", "64x90x9"), "height is 90"),
        (("--target", "rtx-sm89", "--component", "unet"), "has no unet"),
        (("--target", "rtx-sm89", "--keyframes", "-1"), "keyframes -1"),
    ],
)
def test_errors_come_before_any_work(run: Any, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    done = run(*options)
    assert done.exit_code == 1
    assert message in done.stderr
    assert not (tmp_path / "engines").exists()


def test_pack_needs_a_plan_of_every_graph(run: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    assert run("--target", "rtx-sm89", "--workload", "64x96x9").exit_code == 0
    command = ["pack", str(tiny_bundle), str(tmp_path / "box"), "--engines", str(tmp_path / "engines")]
    done = CliRunner().invoke(main, [*command, "--target", "rtx-sm89"])
    assert done.exit_code == 1
    assert "transformer.main, uint8_frames.main, vae_decoder.main, vae_encoder.main for rtx-sm89" in done.stderr
    assert CliRunner().invoke(main, command).exit_code == 2


def test_pack_writes_a_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    engines = str(tmp_path / "engines")
    options = ["--target", "rtx-sm89", "--workload", "32x32x1", "--engines", engines]
    assert CliRunner().invoke(main, ["build", str(tiny_bundle), *options]).exit_code == 0
    out = tmp_path / "box"
    done = CliRunner().invoke(main, ["pack", str(tiny_bundle), str(out), "--target", "rtx-sm89", "--engines", engines])
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{out}\n"
    assert all(component.packed for component in Bundle.open(out).manifest.components.values())
