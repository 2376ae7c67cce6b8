"""`telecine plan` and `telecine inspect PLAN` from the shell's side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from telecine.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_a_plan_and_what_inspect_says_of_it(tiny_bundle: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    size = ["--workload", "96x64x9@b2", "--steps", 3]
    made = run(
        "plan", tiny_bundle, plan, *size, "--prompt", "a red ball", "--seed", 4, "--stg-scale", 1, "--stg-blocks", 1
    )
    assert (made.exit_code, made.stdout) == (0, f"{plan}\n"), made.output
    assert "makes frames uint8 (2, 9, 64, 96, 3), seed 4" in made.stderr
    shown = run("inspect", plan, "--check")
    assert shown.stdout.splitlines()[0] == str(plan)
    assert "transformer.main: 3 runs" in shown.stdout
    assert json.loads(run("inspect", plan, "--json").stdout)["output"]["dtype"] == "uint8"
    assert run("plan", tiny_bundle, plan, *size).exit_code == 1
    again = run("plan", tiny_bundle, plan, *size, "--overwrite", "--json")
    assert json.loads(again.stdout)["inputs"] == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--workload", "64x64x9..96x64x9"], 1, "a range; expected one size"),
        (["--workload", "96x64x9@b1..2"], 1, "Use 96x64x9@b2"),
        (["--workload", "96x64"], 1, "workload '96x64'"),
        ([], 2, "--workload"),
        (["--workload", "96x64x9", "--lora", "x.safetensors"], 2, "--lora"),
    ],
)
def test_wrong_use(tiny_bundle: Path, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    result = run("plan", tiny_bundle, tmp_path / "plan", *arguments)
    assert result.exit_code == code
    assert message in result.output
    assert list(tmp_path.iterdir()) == []
