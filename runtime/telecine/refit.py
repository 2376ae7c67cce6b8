"""A bundle with other weights, without torch and without another export: graphs as they were, LoRA or fine-tune in."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from telecine.atomic import atomic_folder
from telecine.bundle import Bundle, file_entry, is_bundle
from telecine.errors import RequestError
from telecine.graph_weights import GraphWeights
from telecine.lora import Lora
from telecine.manifest import FILE_NAME, Component
from telecine.weight_changes import ComponentChange, WeightChanges


@contextmanager
def refitted_bundle(
    bundle: Bundle,
    destination: Path,
    *,
    loras: Sequence[Lora] = (),
    weights: Mapping[str, Path],
    overwrite: bool = False,
) -> Iterator[Bundle]:
    """A bundle with LoRA files and other checkpoints' weights (by component) in place of the bundle's own.

    It is yielded in a temporary folder, for more to be put into it, and appears at `destination` as a whole. What does
    not change is copied.

    Raises:
        SourceError: a file is damaged, or not of this model.
        BundleError: the bundle lacks a component or its weights, or they are damaged.
        RequestError: nothing to change, or the destination exists (without `overwrite`) or cannot be written.
    """
    changes = WeightChanges()
    if loras:
        changes = changes.with_loras(bundle, loras)
    for component, path in weights.items():
        changes = changes.with_tune(bundle, component, path)
    if not changes.components:
        raise RequestError(
            "no LoRA and no weights", expected="something to put into the bundle", fix="Add --lora FILE[=SCALE]."
        )
    with atomic_folder(destination, overwrite=overwrite, is_ours=is_bundle) as folder:
        try:
            _write(bundle, folder, changes)
        except OSError as error:
            raise RequestError(
                f"writing {destination} failed ({error.strerror or error})",
                expected=f"room for a copy of {bundle.root}",
                fix="Free space, or choose a path on another disk. Nothing was left behind.",
            ) from error
        yield Bundle.open(folder)


def copy(source: Path, target: Path) -> None:
    """A file's contents at another place. No hard link: onnx refuses weights that have several names."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write(bundle: Bundle, folder: Path, changes: WeightChanges) -> None:
    components = {}
    for entry in bundle.hashed_files():
        copy(bundle.path(entry), folder / entry.path)
    for name, component in bundle.manifest.components.items():
        bundle.check(component.weights, contents=True)  # or damage would get a hash that fits it
        copy(bundle.path(component.weights), folder / component.weights.path)
        change = changes.components.get(name)
        components[name] = component if change is None else _changed(bundle, folder, name, component, change)
    manifest = dataclasses.replace(bundle.manifest, components=components)
    (folder / FILE_NAME).write_text(manifest.dump(), encoding="utf-8")


def _changed(bundle: Bundle, folder: Path, name: str, component: Component, change: ComponentChange) -> Component:
    """The component with new values over those of its weights in `folder`, each where the old one lay."""
    path = folder / component.weights.path
    with path.open("r+b") as file:
        for role in component.graphs:
            weights = GraphWeights.open(bundle, name, role)
            for initializer, values in change.values(weights):
                file.seek(weights.initializer(initializer).offset)
                file.write(values.tobytes())
    return dataclasses.replace(
        component, weights=file_entry(folder, path), refitted=(*component.refitted, *change.describe())
    )
