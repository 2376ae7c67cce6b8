"""Where a checkpoint comes from: a diffusers folder or a hub id, its configurations and its safetensors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,  # of the HTTP library that this release of the hub's client uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from telecine.errors import SourceError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
COMPONENT_FOLDERS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler", "latent_upsampler")
WANTED_SUFFIXES = ("json", "safetensors", "model", "txt")
# What diffusers and transformers call a component's weights.
WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A component from outside its source's folder: its configuration, and its safetensors (a folder or a file)."""

    config: Mapping[str, Any]
    weights: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checkpoint in diffusers' layout on this machine's disk; `components` come from elsewhere or are added."""

    root: Path
    pipeline_class: str
    components: Mapping[str, Part] = field(default_factory=dict)

    def config(self, component: str) -> dict[str, Any]:
        """The component's configuration as the checkpoint ships it."""
        if component in self.components:
            return dict(self.components[component].config)
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        return read_json(self.root / component / name)

    def checkpoint(self, component: str) -> Checkpoint:
        """The component's tensors, by the names that the checkpoint gives them."""
        part = self.components.get(component)
        return Checkpoint(part.weights if part else self.root / component)


def open_source(source: str, *, revision: str | None = None) -> Source:
    """Find a checkpoint: a folder, or a hub id that is downloaded into (or found in) the hub's cache.

    Raises:
        SourceError: neither a folder nor a hub id; not reachable; not in diffusers' layout.
    """
    path = Path(os.path.expanduser(source))  # Path.expanduser raises where ~NAME is no user
    if path.is_dir():
        if revision is not None:
            raise SourceError(
                f"--revision {revision} with the folder {source}",
                expected="a hub id, which has revisions",
                fix="Leave --revision out, or name the model by its hub id.",
            )
        root = path
    elif path.is_file():
        raise SourceError(
            f"{source} is a single file",
            expected="a folder in diffusers' layout or a hub id",
            fix="Convert it once with diffusers: LTXPipeline.from_single_file(FILE).save_pretrained(FOLDER).",
        )
    elif HUB_ID.fullmatch(source) and not source.startswith("."):
        root = _download(source, revision)
    else:
        raise SourceError(
            f"{source} does not exist",
            expected="a folder in diffusers' layout or a hub id such as Lightricks/LTX-Video",
            fix="Check the path.",
        )
    index = read_json(root / "model_index.json")
    if not isinstance(index.get("_class_name"), str):
        raise SourceError(
            f"{root / 'model_index.json'} names no pipeline class",
            expected="a `_class_name`",
            fix="Save the pipeline again with diffusers' save_pretrained.",
        )
    return Source(root=root, pipeline_class=index["_class_name"])


def _download(repository: str, revision: str | None) -> Path:
    """Fetch a hub repository's component folders; the repository's single-file checkpoints stay there."""
    patterns = ["model_index.json", *(f"{c}/*.{s}" for c in COMPONENT_FOLDERS for s in WANTED_SUFFIXES)]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        problem, fix = "asks for a licence to be accepted", "Accept it on the hub, then set HF_TOKEN."
        raise SourceError(f"{repository} {problem}", expected="a readable repository", fix=fix) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        at = f" at revision {revision}" if revision else ""
        raise SourceError(
            f"the hub has no {repository}{at}",
            expected="a public hub id, or a private one with HF_TOKEN set",
            fix="Check the name; for a folder, check that it exists.",
        ) from error
    except LocalEntryNotFoundError as error:
        raise SourceError(
            f"{repository} is not in the hub's cache and the hub cannot be reached",
            expected="a connection, or an earlier download",
            fix="Connect (and unset HF_HUB_OFFLINE), or pass a folder.",
        ) from error
    except (HTTPError, OSError) as error:
        raise SourceError(
            f"downloading {repository} failed: {error}",
            expected="the hub to answer and the cache's disk to have room",
            fix="Run the command again: files that arrived are kept.",
        ) from error


class Checkpoint:
    """The tensors of one component: one or several `.safetensors`, opened lazily and never unpickled."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            SourceError: no safetensors, a missing shard, or a damaged file.
        """
        self.folder = folder
        self._stack = ExitStack()
        self._handles: dict[str, Any] = {}
        for file in [folder] if folder.is_file() else _weight_files(folder):
            try:
                handle = self._stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                self._stack.close()
                raise SourceError(
                    f"{file} cannot be read: {error}",
                    expected="a whole safetensors file",
                    fix="Download or copy it again.",
                ) from error
            self._handles.update(dict.fromkeys(handle.keys(), handle))

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._handles.clear()
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._handles

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handle(name).get_slice(name).get_shape())

    def load(self, name: str) -> torch.Tensor:
        """The tensor, in the checkpoint's own type."""
        return self._handle(name).get_tensor(name)

    def _handle(self, name: str) -> Any:
        if name not in self._handles:
            raise SourceError(
                f"{self.folder} has no tensor {name}",
                expected="every tensor that its config.json asks for",
                fix="The checkpoint is incomplete or its config.json is another model's: download it again.",
            )
        return self._handles[name]


def _weight_files(folder: Path) -> list[Path]:
    """The files that diffusers would load with no `variant`; a variant (`NAME.fp16.safetensors`) if it is all there is.

    Raises:
        SourceError: no safetensors, a choice between several, or a missing shard.
    """
    for name in WEIGHT_NAMES:
        index, file = folder / f"{name}.safetensors.index.json", folder / f"{name}.safetensors"
        if index.is_file():
            return _shards(index)
        if file.is_file():
            return [file]
    indexes = sorted(folder.glob("*.safetensors.index.*json"))
    if len(indexes) == 1:
        return _shards(indexes[0])
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise SourceError(
            f"{folder} has {len(files)} safetensors files and no index: {', '.join(file.name for file in files)}",
            expected=f"one file, or shards with an index, named {' or '.join(WEIGHT_NAMES)}",
            fix="Keep only the variant to export, or download the missing index.",
        )
    pickled = sorted(file for pattern in PICKLES for file in folder.glob(pattern))
    raise SourceError(
        f"{folder} has {pickled[0].name}, a pickle, and no safetensors" if pickled else f"{folder} has no safetensors",
        expected="weights as safetensors (telecine never unpickles)",
        fix="Load it with diffusers and save it with save_pretrained(safe_serialization=True).",
    )


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    # A name with a folder in it would read outside the checkpoint.
    missing = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if missing or not names:
        raise SourceError(
            f"{index.parent} lacks {', '.join(missing) or 'every shard'}",
            expected=f"the shards that {index.name} lists, beside it",
            fix="Download the folder again.",
        )
    return [index.parent / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        SourceError: no such file, or no JSON object in it.
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
