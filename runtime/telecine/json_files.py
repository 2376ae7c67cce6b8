"""Configuration files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from telecine.errors import SourceError


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        SourceError: the file is missing, cannot be read, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SourceError(
            f"{path} is missing",
            expected="a checkpoint in diffusers' layout",
            fix="Point at the folder that holds model_index.json and its component folders.",
        ) from error
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{path} cannot be read: {error}", expected="a JSON object", fix="Download or copy it again."
        ) from error
    if not isinstance(content, dict):
        raise SourceError(
            f"{path} holds a {type(content).__name__}", expected="a JSON object", fix="Download it again."
        )
    return content
