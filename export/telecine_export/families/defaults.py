"""What a configuration leaves out: the defaults of the class that reads it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def complete(model: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the defaults of the diffusers class for what it leaves out."""
    parameters = inspect.signature(model).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return defaults | dict(config)
