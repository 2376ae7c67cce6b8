"""One build at a time, and a lock that dies with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from telecine.errors import EngineError
from telecine_engines.lock import FILE_NAME, build_lock

HOLD = "import sys, time\nfrom pathlib import Path\nfrom telecine_engines.lock import build_lock\n" \
    "with build_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"  # fmt: skip


def test_a_second_build_is_refused_until_the_first_one_dies(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(engines)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(EngineError, match=f"process {child.pid} builds in"), build_lock(engines):
            pass
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    with build_lock(engines):
        assert (engines / FILE_NAME).read_text() == f"{os.getpid()}\n"


def test_the_lock_is_free_again_afterwards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a build that fails"), build_lock(tmp_path):
        raise ValueError("a build that fails")
    with build_lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="cannot be written .*--engines DIR"), build_lock(tmp_path / "file"):
        pass


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("telecine_engines.lock.fcntl.flock", refuse)
    with pytest.raises(EngineError, match="file system without locks"), build_lock(tmp_path):
        pass
