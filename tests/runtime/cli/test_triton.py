"""telecine triton: options to requests, what goes to stdout and stderr, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from telecine.cli import main


def test_it_writes_what_its_options_say(tiny_bundle: Path, tmp_path: Path) -> None:
    command = ["triton", str(tiny_bundle), str(tmp_path / "repository"), "--name", "ltx", "--model-version", "2"]
    options = ["--device", "cuda:0", "--device", "cuda:2", "--instances", "2", "--concurrency", "3", "--threads", "4"]
    done = CliRunner().invoke(main, [*command, *options, "--environment", "/opt/telecine"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'repository'}\n"
    assert done.stderr == "models: ltx\n"
    config = (tmp_path / "repository" / "ltx" / "config.pbtxt").read_text()
    assert "  count: 2\n  kind: KIND_GPU\n  gpus: 0\n  gpus: 2\n" in config
    for key, value in {
        "concurrency": 3,
        "threads": 4,
        "backend": "auto",
        "EXECUTION_ENV_PATH": "/opt/telecine",
    }.items():
        assert f'  key: "{key}"\n  value {{\n    string_value: "{value}"\n' in config
    assert (tmp_path / "repository" / "ltx" / "2" / "bundle" / "telecine.json").is_file()


def test_json_names_the_models_and_overwrite_replaces(tiny_bundle: Path, tmp_path: Path) -> None:
    command = ["triton", str(tiny_bundle), str(tmp_path / "repository"), "--json"]
    assert json.loads(CliRunner().invoke(main, command).stdout)["models"] == ["telecine"]
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 1
    assert "repository" in again.stderr
    done = CliRunner().invoke(main, [*command, "--overwrite", "--graphs", "onnxruntime"])
    assert json.loads(done.stdout)["models"][:3] == ["telecine", "telecine_text_encoder", "telecine_transformer"]


def test_errors_come_before_any_work(tiny_bundle: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["triton", str(tiny_bundle), str(tmp_path / "repository"), "--device", "gpu"])
    assert done.exit_code == 1
    assert "device gpu; expected auto, cpu, cuda" in done.stderr
    assert not (tmp_path / "repository").exists()
