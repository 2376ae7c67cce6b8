"""A component's weights from another checkpoint of the same shape."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from telecine.bundle import Bundle, sha256
from telecine.dtypes import Floats
from telecine.errors import SourceError
from telecine.families.base import Naming
from telecine.graph_weights import GraphWeights
from telecine.safetensors_files import SafetensorsFiles, weight_files

QUANTISED = ("F8_E4M3", "F8_E5M2", "I8", "U8")


class FineTune:
    """Every weight of a component, from safetensors in diffusers' layout or an original one.

    Tensors that the component's graphs have no use for are left alone: a VAE's file has both of its halves.
    """

    def __init__(self, files: SafetensorsFiles, names: Mapping[str, str]) -> None:
        self.origin = files.origin
        self._files, self._names = files, names

    @classmethod
    def open(cls, path: str | Path, bundle: Bundle, component: str, naming: Naming) -> FineTune:
        """
        Raises:
            SourceError: no such file, a damaged one, or one that lacks a weight, or has it quantised or in another
                shape; or one that goes with other settings of the host.
            BundleError: the bundle lacks the component.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for role in bundle.component(component).graphs:
            weights = GraphWeights.open(bundle, component, role)
            shapes |= {name: weights.shape(name) for name in weights.names()}
        root = Path(os.path.expanduser(path))  # Path.expanduser raises where ~NAME is no user
        if not root.exists():
            raise SourceError(
                f"{path} does not exist", expected="a file or folder of safetensors", fix="Check the path."
            )
        files = SafetensorsFiles(weight_files(root) if root.is_dir() else [root], root)
        found = naming.tensors[component](files.names())
        if not found:
            raise _refused(root, f"holds no {component}", "its weights, by diffusers' or the original names")
        names = {name: found.get(name) or found.get(naming.tied.get(name, name)) for name in shapes}
        for name, stored in names.items():
            _check(files, name, stored, shapes[name], bundle)
        for name, key in naming.recorded.get(component, {}).items():
            if name in found and files.load(found[name]).tolist() != bundle.manifest.host[key]:
                raise _refused(root, f"has another {name}", f"the values that {bundle.root} was exported with")
        return cls(files, {name: stored for name, stored in names.items() if stored is not None})

    def describe(self) -> str:
        """Its files, each with its hash."""
        return ", ".join(f"{file.name} sha256 {sha256(file)}" for file in self._files.files)

    def load(self, name: str) -> Floats:
        """The weight of this name, as float32.

        Raises:
            SourceError: the file was cut meanwhile.
        """
        return self._files.load(self._names[name])


def _check(files: SafetensorsFiles, name: str, stored: str | None, shape: tuple[int, ...], bundle: Bundle) -> None:
    if stored is None:
        raise _refused(files.origin, f"has no {name}", f"every weight of the component in {bundle.root}")
    if files.stored_as(stored) in QUANTISED:
        raise _refused(files.origin, f"has {stored} as {files.stored_as(stored)}", "unquantised weights")
    if files.shape(stored) != shape:
        got = list(files.shape(stored))
        raise _refused(files.origin, f"has {stored} of shape {got}", f"{list(shape)}, as {bundle.root} has")


def _refused(path: Path, problem: str, expected: str) -> SourceError:
    return SourceError(
        f"{path} {problem}", expected=expected, fix="Use a fine-tune of the same model, or export it as one of its own."
    )
