"""Configurations of LTX-2's VAEs, vocoders and upsamplers that cannot be exported, each with the reason."""

from __future__ import annotations
from collections.abc import Mapping
from pathlib import Path
from typing import Any
Config = Mapping[str, Any]
def check_vae(origin: Path, config: Config) -> None: ...
