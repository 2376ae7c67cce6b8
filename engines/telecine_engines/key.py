"""A plan's key: a hash of all that it depends on. What has the same key is not built again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from telecine_engines.profiles import Profile

# Raised when this package builds another network from the same graph and options.
BUILDER = 1
CHARACTERS = 16


def plan_key(
    *,
    component: str,
    role: str,
    graph_sha256: str,
    weights_sha256: str,
    target: str,
    library: str,
    library_version: str,
    platform: str,
    profiles: tuple[Profile, ...],
    options: Mapping[str, Any],
) -> str:
    """The name of a plan's folder: hex, of SHA-256."""
    content = {
        "builder": BUILDER,
        "component": component,
        "role": role,
        "graph": graph_sha256,
        "weights": weights_sha256,
        "target": target,
        "library": library,
        "version": library_version,
        "platform": platform,
        "profiles": [{name: asdict(each) for name, each in profile.items()} for profile in profiles],
        "options": dict(options),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:CHARACTERS]
