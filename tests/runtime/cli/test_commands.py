"""The other commands, and how every failure ends: a sentence on stderr and an exit code, never a traceback."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from telecine.bundle import Bundle
from telecine.cli import main


def test_inspect(tiny_bundle: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(tiny_bundle)])
    assert result.exit_code == 0
    assert "hidden_states float32 (batch, tokens, 16)" in result.stdout
    assert "preset recommended" in result.stdout


def test_inspect_json_is_the_manifest(tiny_bundle: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(tiny_bundle), "--json"])
    assert json.loads(result.stdout)["family"] == "ltx-video"


def test_inspect_check_hashes_the_weights(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    with (copy / "transformer" / "weights.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\x00\xff\x00")
    assert CliRunner().invoke(main, ["inspect", str(copy)]).exit_code == 0
    result = CliRunner().invoke(main, ["inspect", str(copy), "--check"])
    assert result.exit_code == 1
    assert "weights.bin has changed" in result.stderr


def test_doctor(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["doctor", "--for", "runtime", "--json", "--path", str(tmp_path)])
    assert {"Python", "onnxruntime"} <= {check["name"] for check in json.loads(result.stdout)}
    assert CliRunner().invoke(main, ["doctor", "--for", "lunch"]).exit_code == 1


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (MemoryError(), "out of memory"),
        (ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime"), "telecine[onnxruntime]"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "telecine[export]"),
        (ModuleNotFoundError("No module named 'av'", name="av"), "telecine[video]"),
        (ImportError("libcudart.so: cannot open shared object file", name="zlib"), "telecine doctor"),
    ],
)
def test_no_traceback_reaches_a_user(
    raised: Exception, words: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: object) -> None:
        raise raised

    monkeypatch.setattr(Bundle, "open", fail)
    result = CliRunner().invoke(main, ["inspect", str(tiny_bundle)])
    assert result.exit_code == 1
    assert result.stderr.startswith("telecine: ")
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_ctrl_c_ends_quietly(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bundle, "open", interrupt)
    result = CliRunner().invoke(main, ["inspect", str(tiny_bundle)])
    assert (result.exit_code, result.stderr.strip()) == (1, "Aborted!")


def test_help_needs_click_alone() -> None:
    code = (
        "import sys; from telecine.cli import main;"
        "print(sorted({'numpy', 'onnxruntime', 'av', 'tokenizers', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
