"""What TensorRT for RTX compiles is kept, and never stops a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from telecine.backends.tensorrt.session import TensorRtSession

pytest.importorskip("onnxruntime")

Open = Callable[..., TensorRtSession]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "telecine" / "tensorrt_rtx"


def use(open_session: Open) -> None:
    with open_session(library="tensorrt_rtx", target="rtx-sm89") as session:
        session.run({"input_ids": np.ones((1, 8), np.int64)})


def test_it_is_kept_and_used(open_session: Open, folder: Path) -> None:
    use(open_session)
    (cache,) = folder.iterdir()
    assert cache.read_bytes() == b"double:1"  # the double counts what was compiled with it
    use(open_session)
    assert cache.read_bytes() == b"double:2"


def test_clones_share_it(open_session: Open, folder: Path) -> None:
    with open_session(library="tensorrt_rtx") as session, session.clone():
        pass
    (cache,) = folder.iterdir()
    assert cache.read_bytes() == b"double:2"


def test_one_that_is_out_of_date_is_replaced(open_session: Open, folder: Path) -> None:
    use(open_session)
    (cache,) = folder.iterdir()
    cache.write_bytes(b"of another driver")
    use(open_session)
    assert cache.read_bytes() == b"double:1"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(open_session: Open, folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    use(open_session)


def test_a_file_where_the_folder_belongs(open_session: Open, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("")
    with caplog.at_level(logging.WARNING):
        use(open_session)
    assert "the runtime cache is not" in caplog.text
