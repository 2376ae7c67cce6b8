"""A NumPy interpreter of plans: the one that ships as an example."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

REPLAY = Path(__file__).parents[3] / "runtime" / "embed" / "replay" / "replay.py"


@pytest.fixture(scope="session")
def replay() -> Any:
    """`replay(plan, bundle)`: runtime/embed/replay/replay.py's `Replay`."""
    spec = importlib.util.spec_from_file_location("telecine_replay", REPLAY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Replay
