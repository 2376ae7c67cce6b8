"""Open a bundle and trust it: format, hashes and sizes are checked before anything is used."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from telecine.errors import BundleError
from telecine.manifest import FILE_NAME, Component, FileEntry, Graph, Manifest

# Bytes read at a time: hashing a file takes no more memory than this.
PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle on disk whose manifest, graphs and tokenizer are those that export wrote."""

    root: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Check format, the hashes of manifest, graphs and tokenizer, and the sizes of weights.

        Raises:
            BundleError: missing, of another format, damaged, edited, or with paths that leave the bundle.
        """
        root = Path(os.path.expanduser(path))  # Path.expanduser raises on a folder called ~name
        manifest = Manifest.parse(_read_manifest(root), where=str(root / FILE_NAME))
        bundle = cls(root=root, manifest=manifest)
        for entry in bundle.hashed_files():
            bundle.check(entry, contents=True)
        for component in bundle.with_weights():
            bundle.check(component.weights, contents=False)
        return bundle

    def hashed_files(self) -> list[FileEntry]:
        """The small files, whose contents are checked at every opening."""
        graphs = [graph for part in self.manifest.components.values() for graph in part.graphs.values()]
        files = [file for graph in graphs for file in (graph.file, graph.onnxruntime_cpu) if file is not None]
        return [self.manifest.tokenizer, *files]

    def check_weights(self) -> None:
        """Hash the weights too (gigabytes: `telecine inspect --check`).

        Raises:
            BundleError: a weights file is not the one that export wrote.
        """
        for component in self.with_weights():
            self.check(component.weights, contents=True)

    def with_weights(self) -> list[Component]:
        """The components whose weights are in the bundle: all, but for what `telecine pack` left out."""
        return [component for component in self.manifest.components.values() if not component.packed]

    def require_weights(self, component: str) -> None:
        """
        Raises:
            BundleError: the bundle lacks the component, or `telecine pack` left its weights out.
        """
        if self.component(component).packed:
            raise BundleError(
                f"{self.root} holds {component} as engines only, without ONNX weights",
                expected="the bundle that it was packed from, for ONNX Runtime and for building",
                fix="Run it with backend='tensorrt', or use the bundle that telecine export wrote.",
            )

    def component(self, name: str) -> Component:
        """
        Raises:
            BundleError: the bundle lacks the component.
        """
        if name not in self.manifest.components:
            raise BundleError(
                f"{self.root} has no {name}",
                expected=f"one of its components: {', '.join(self.manifest.components)}",
                fix="Export the bundle again from a complete source.",
            )
        return self.manifest.components[name]

    def graph(self, component: str, role: str = "main") -> Graph:
        """
        Raises:
            BundleError: the bundle lacks the component, or the component the role.
        """
        graphs = self.component(component).graphs
        if role not in graphs:
            raise BundleError(
                f"{component} of {self.root} has no graph {role}",
                expected=f"one of its roles: {', '.join(graphs)}",
                fix="Export the bundle again with this telecine.",
            )
        return graphs[role]

    def path(self, entry: FileEntry) -> Path:
        """Where a file lies; a path that leaves the bundle (`..`, absolute) is refused.

        Raises:
            BundleError: the path leaves the bundle.
        """
        relative = Path(entry.path)
        if relative.is_absolute() or ".." in relative.parts:
            raise BundleError(
                f"{self.root / FILE_NAME} names {entry.path}",
                expected="paths inside the bundle",
                fix="Do not use this bundle; export it again from a source that you trust.",
            )
        return self.root / relative

    def check(self, entry: FileEntry, *, contents: bool) -> None:
        """
        Raises:
            BundleError: the file is missing, cannot be read, has another size, or (with `contents`) other contents.
        """
        path = self.path(entry)
        try:
            if not path.is_file():
                raise _wrong(path, "is missing", f"a file of {entry.size} bytes")
            size = path.stat().st_size
            if size != entry.size:
                raise _wrong(path, f"has {size} bytes", f"{entry.size}")
            if contents and sha256(path) != entry.sha256:
                raise _wrong(path, "has changed: its SHA-256 is another", entry.sha256)
        except OSError as error:
            raise _wrong(path, f"cannot be read ({error.strerror or error})", "a file that can be read") from error


def _wrong(path: Path, problem: str, expected: str) -> BundleError:
    return BundleError(f"{path} {problem}", expected=expected, fix="Export or copy the bundle again.")


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's contents."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def file_entry(root: Path, path: Path) -> FileEntry:
    """A file below `root`, as its manifest records it."""
    return FileEntry(path=path.relative_to(root).as_posix(), size=path.stat().st_size, sha256=sha256(path))


def is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle at all (what `--overwrite` may replace)."""
    return (path / FILE_NAME).is_file()


def _read_manifest(root: Path) -> str:
    try:
        return (root / FILE_NAME).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        problem = f"{root} is not a bundle: it has no {FILE_NAME}" if root.is_dir() else f"{root} does not exist"
        raise BundleError(
            problem, expected="a folder that telecine export wrote", fix="Run: telecine export SOURCE BUNDLE"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{root / FILE_NAME} cannot be read: {error}",
            expected="the manifest that telecine export wrote",
            fix="Check the path and its permissions, or copy the bundle again.",
        ) from error
