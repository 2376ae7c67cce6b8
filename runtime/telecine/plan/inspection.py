"""What `telecine inspect` prints of a plan."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from telecine.bundle import sha256
from telecine.errors import BundleError
from telecine.inspection import show_bytes
from telecine.plan.document import FILE_NAME, FORMATS


def is_plan(path: Path) -> bool:
    """Whether a folder holds a plan."""
    return (path / FILE_NAME).is_file()


def read_plan(path: Path, *, check: bool) -> dict[str, Any]:
    """The content of `plan.json`; `check` hashes the tensors too.

    Raises:
        BundleError: a file is missing, damaged, or of another format.
    """
    try:
        content = json.loads((path / FILE_NAME).read_text(encoding="utf-8"))
        known = isinstance(content, dict) and content.get("format") in FORMATS
        problem = "" if known else f"{path / FILE_NAME} is not a plan of format {' or '.join(map(str, FORMATS))}"
        if known:
            tensors, recorded = path / content["tensors"]["file"], content["tensors"]
            whole = tensors.stat().st_size == recorded["size"] and (not check or sha256(tensors) == recorded["sha256"])
            problem = "" if whole else f"{tensors} has changed"
    except (OSError, ValueError, RecursionError) as error:
        problem = f"{path} cannot be read ({error})"
    if problem:
        raise BundleError(problem, expected="the folder that telecine plan wrote", fix="Make the plan again.")
    return content


def describe(plan: Mapping[str, Any]) -> list[str]:
    """Lines: the result, what the host fills, the networks and how often they run, operations, memory."""
    output, buffers = plan["output"], plan["buffers"]
    sound = f" with sound {_shape(output['audio'])}" if "audio" in output else ""
    lines = [
        f"  {plan['family']} {plan['variant']}, format {plan['format']}",
        f"  makes {output['kind']} {_shape(output)}{sound}, seed {', '.join(map(str, plan['seeds']))}",
        *(f"  asks for {name} {_shape(buffers[name])}" for name in plan["inputs"]),
    ]
    runs = Counter((step["component"], step["role"]) for step in plan["steps"] if step["op"] == "run")
    for component, roles in plan["components"].items():
        for role, files in roles.items():
            engines = ", ".join(files["engines"]) or "no engines"
            lines.append(f"  {component}.{role}: {runs[component, role]} runs, {files['graph']}, {engines}")
    operations = Counter(step["op"] for step in plan["steps"] if step["op"] != "run")
    lines.append("  between them: " + ", ".join(f"{count} {name}" for name, count in operations.most_common()))
    memory, tensors = sum(plan["memory"]), plan["tensors"]["size"]
    lines.append(f"  {show_bytes(memory)} of memory in {len(plan['memory'])} blocks, {show_bytes(tensors)} of tensors")
    return lines


def _shape(array: Mapping[str, Any]) -> str:
    return f"{array['dtype']} ({', '.join(map(str, array['shape']))})"
