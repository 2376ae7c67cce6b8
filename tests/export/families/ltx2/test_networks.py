"""What LTX-2's parts must have in common."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from telecine.errors import SourceError
from telecine_export.families.ltx2 import networks
from telecine_export.source import open_source

Sources = Callable[[str], tuple[Path, Path]]


@pytest.mark.parametrize(
    ("component", "change", "words"),
    [
        ("transformer", {"in_channels": 8}, "makes 16 channels, and .* takes 8"),
        ("transformer", {"audio_in_channels": 12}, "makes .* values, and .* takes 12"),
        ("transformer", {"cross_attention_dim": 24}, "channels for the video, and .* takes 24"),
    ],
    ids=["video", "sound", "text"],
)
def test_parts_of_different_models_are_refused(
    ltx2_sources: Sources, tmp_path: Path, component: str, change: dict[str, int], words: str
) -> None:
    source, _ = ltx2_sources("2.3")
    folder = shutil.copytree(source / component, tmp_path / component)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=words):
        networks.graphs(open_source(str(source), transformer=str(folder)))
