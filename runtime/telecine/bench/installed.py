"""Bytes on disk of packages and all that they require."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import telecine
from telecine.errors import RequestError

RUNTIME = ("telecine[onnxruntime]",)
# What a LTX-Video pipeline of diffusers imports; accelerate, which it advises, is left out.
DIFFUSERS = ("diffusers", "transformers", "torch", "sentencepiece")
REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?([^;]*)(?:;(.*))?")
EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


def installed(requirements: Sequence[str]) -> dict[str, Any]:
    """Bytes and number of the packages that requirements need, by the metadata of what is installed.

    A requirement for another system or Python is not installed, and so not counted.

    Raises:
        RequestError: a package that was named is not installed.
    """
    sizes: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(requirement, True) for requirement in requirements]
    while waiting:
        requirement, named = waiting.pop()
        name, extras = _parse(requirement)
        found = _find(name)
        if found is None and named:
            raise RequestError(f"{name} is not installed", expected="it, to be measured", fix=f"pip install {name}")
        for extra in {"", *extras}:
            if found is None or (name, extra) in seen:
                continue
            seen.add((name, extra))
            sizes.setdefault(name, _size(found))
            waiting += [(each, False) for each in _required(found, extra)]
    return {"bytes": sum(sizes.values()), "packages": dict(sorted(sizes.items()))}


def _parse(requirement: str) -> tuple[str, set[str]]:
    match = REQUIREMENT.match(requirement)
    assert match is not None
    name = re.sub(r"[-_.]+", "-", match[1]).lower()
    return name, {extra.strip() for extra in (match[2] or "").split(",") if extra.strip()}


def _find(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _required(found: Distribution, extra: str) -> Iterable[str]:
    """What a package requires for an extra ("" is what it always needs)."""
    for requirement in found.requires or ():
        wanted = EXTRA.search(requirement)
        if (wanted[1] if wanted else "") == extra:
            yield requirement


def _size(found: Distribution) -> int:
    if found.metadata["Name"] == "telecine":  # an editable one lists no files, and the exporter is not the runtime
        return sum(path.stat().st_size for path in Path(telecine.__file__).parent.rglob("*.py"))
    paths = (Path(str(found.locate_file(file))) for file in found.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file())
