"""Where one component of a source comes from: a folder, or a part of a single file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from telecine.errors import SourceError
from telecine.json_files import read_json
from telecine.safetensors_files import weight_files
from telecine_export.checkpoints.checkpoint import Checkpoint
from telecine_export.checkpoints.dequantised import Dequantised
from telecine_export.checkpoints.gguf_file import MAGIC, GgufCheckpoint
from telecine_export.checkpoints.renamed import Renamed
from telecine_export.checkpoints.safetensors_files import SafetensorsCheckpoint

CONFIG_FILE = "config.json"
SCHEDULER_FILE = "scheduler_config.json"
QUANTISATION = "quantization_config"


class Component(Protocol):
    """A configuration and its tensors. `origin` is the folder or file, for messages."""

    @property
    def origin(self) -> Path: ...

    def config(self) -> dict[str, Any]: ...

    def checkpoint(self) -> Checkpoint: ...


@dataclass(frozen=True, slots=True)
class FolderComponent:
    """A component folder in diffusers' layout."""

    origin: Path
    config_file: str = CONFIG_FILE

    def config(self) -> dict[str, Any]:
        """
        Raises:
            SourceError: the configuration is missing, damaged, or of a quantisation that cannot be undone.
        """
        config = read_json(self.origin / self.config_file)
        quantisation = config.pop(QUANTISATION, None)
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
        if quantisation is not None and method != "bitsandbytes":
            raise SourceError(
                f"{self.origin} is quantised by {method}",
                expected="bitsandbytes, or no quantisation",
                fix="Export the model from unquantised weights, or from GGUF.",
            )
        return config

    def is_quantised(self) -> bool:
        """Whether its configuration says so."""
        return QUANTISATION in read_json(self.origin / self.config_file)

    def checkpoint(self) -> Checkpoint:
        return Dequantised(SafetensorsCheckpoint(weight_files(self.origin), self.origin))


@dataclass(frozen=True, slots=True)
class FileComponent:
    """A part of a single file: `names` maps diffusers' names of its tensors to the file's."""

    origin: Path
    settings: Mapping[str, Any]
    names: Mapping[str, str]

    def config(self) -> dict[str, Any]:
        return dict(self.settings)

    def checkpoint(self) -> Checkpoint:
        return Renamed(open_file(self.origin), self.names)


def open_file(file: Path) -> Checkpoint:
    """A single file by its content: safetensors or GGUF.

    Raises:
        SourceError: a pickle, or a damaged file.
    """
    with file.open("rb") as content:
        magic = content.read(len(MAGIC))
    return GgufCheckpoint(file) if magic == MAGIC else Dequantised(SafetensorsCheckpoint([file], file))
