from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from demo_model.settings import CHECKPOINT, UPSCALER

from telecine_export.export import export_bundle
from telecine_export.source import open_source
from telecine_export.upscaler import with_upscaler


@pytest.fixture(scope="session")
def demo_bundle(shared: Callable[..., Path]) -> Path:
    """The repository's own checkpoint and upsampler, exported. Read only."""
    source = with_upscaler(open_source(str(CHECKPOINT)), str(UPSCALER))
    return shared("demo-bundle", lambda path: export_bundle(source, path))
