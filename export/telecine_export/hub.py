"""The hub's repositories: their component folders, or single files of theirs, in the hub client's cache."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,  # of the HTTP library that this release of the hub's client uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from telecine.errors import SourceError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
HUB_FILE = re.compile(r"([\w-][\w.-]*/[\w.-]+)/([\w./-]+\.(?:safetensors|gguf))")
COMPONENT_FOLDERS = (
    "transformer", "vae", "text_encoder", "tokenizer", "scheduler", "latent_upsampler",
    "connectors", "audio_vae", "vocoder", "audio_scheduler",
)  # fmt: skip
LARGE_SUFFIXES = ("safetensors", "model", "txt")
# A component that is a repository of its own; a pipeline's repository has no such files beside its single-file models.
ROOT_FILES = (
    "config.json", "model*.safetensors*", "diffusion_pytorch_model*.safetensors*", "tokenizer*.json", "spiece.model",
    "tokenizer.model",
)  # fmt: skip


def download(repository: str, revision: str | None, wanted: Collection[str] = COMPONENT_FOLDERS) -> Path:
    """Fetch a repository's configurations and the weights of the wanted components, but not its single-file models.

    Raises:
        SourceError: the hub cannot be reached, or has no such repository.
    """
    patterns = ["model_index.json", *(f"{folder}/*.json" for folder in COMPONENT_FOLDERS)]
    patterns += [
        f"{folder}/*.{suffix}" for folder in COMPONENT_FOLDERS if folder in wanted for suffix in LARGE_SUFFIXES
    ]
    with _explaining(repository, revision):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))


def download_root(repository: str) -> Path:
    """Fetch a repository that is one component.

    Raises:
        SourceError: as `download`.
    """
    with _explaining(repository, None):
        return Path(snapshot_download(repository, allow_patterns=list(ROOT_FILES)))


def download_file(repository: str, file: str, revision: str | None) -> Path:
    """Fetch one file.

    Raises:
        SourceError: as `download`, or the repository has no such file.
    """
    with _explaining(repository, revision, file):
        return Path(hf_hub_download(repository, file, revision=revision))


@contextmanager
def _explaining(repository: str, revision: str | None, file: str | None = None) -> Iterator[None]:
    """What the hub's client raises, as SourceError."""
    try:
        yield
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
    except EntryNotFoundError as error:
        raise SourceError(
            f"{repository} has no {file}", expected="a file of the repository", fix="Check its name on the hub."
        ) from error
    except (HTTPError, OSError) as error:
        raise SourceError(
            f"downloading {repository} failed: {error}",
            expected="the hub to answer and the cache's disk to have room",
            fix="Run the command again: files that arrived are kept.",
        ) from error
