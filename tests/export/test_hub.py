"""What the hub's client raises, and what it is asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from telecine.errors import SourceError
from telecine_export import hub
from telecine_export.source import open_source


def http_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    """Built as the hub's client builds it, around a response of the HTTP library that it uses."""
    http = sys.modules[HTTPError.__module__.partition(".")[0]]
    request = http.Request("GET", "https://huggingface.co/api/models/some/model")
    return kind(f"{status} from the hub", response=http.Response(status, request=request))


def transport_error() -> Exception:
    http = sys.modules[HTTPError.__module__.partition(".")[0]]
    error: Exception = http.ProxyError("no tunnel")
    return error


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (lambda: http_error(RepositoryNotFoundError, 404), "the hub has no some/model; .*HF_TOKEN"),
        (lambda: http_error(GatedRepoError, 403), "some/model asks for a licence.*Accept it on the hub"),
        (lambda: http_error(RevisionNotFoundError, 404), "the hub has no some/model"),
        (lambda: LocalEntryNotFoundError("nothing cached"), "is not in the hub's cache.*HF_HUB_OFFLINE"),
        (lambda: http_error(HfHubHTTPError, 503), "downloading some/model failed: 503 from the hub"),
        (transport_error, "downloading some/model failed: no tunnel"),
        (lambda: ConnectionError("reset by peer"), "downloading some/model failed: reset by peer"),
        (lambda: OSError(28, "No space left on device"), "downloading some/model failed: .*No space left"),
        (lambda: OfflineModeIsEnabled("offline"), "downloading some/model failed"),
        (lambda: HFValidationError("bad name"), "the hub has no some/model"),
    ],
)
def test_what_the_hub_raises_becomes_a_source_error(error: Any, problem: str, monkeypatch: Any) -> None:
    raised = error()

    def download(*arguments: Any, **options: Any) -> str:
        raise raised

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(SourceError, match=problem) as caught:
        open_source("some/model")
    assert caught.value.__cause__ is raised


def test_the_revision_and_the_component_folders_are_asked_for(tiny_source: Path, monkeypatch: Any) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tiny_source)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert open_source("Lightricks/LTX-Video", revision="refs/pr/1").root == tiny_source
    assert (asked["repository"], asked["revision"]) == ("Lightricks/LTX-Video", "refs/pr/1")
    patterns = asked["allow_patterns"]
    assert "model_index.json" in patterns
    assert not any(pattern.startswith("*") for pattern in patterns)  # the root's single-file checkpoints stay there
    wanted = {file.relative_to(tiny_source) for file in tiny_source.rglob("*") if file.is_file()}
    assert all(any(file.match(pattern) for pattern in patterns) for file in wanted)


def test_a_missing_revision_is_named(monkeypatch: Any) -> None:
    def download(*arguments: Any, **options: Any) -> str:
        raise http_error(RevisionNotFoundError, 404)

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(SourceError, match="the hub has no some/model at revision v9"):
        open_source("some/model", revision="v9")


def test_offline_the_hub_s_cache_is_enough(tiny_source: Path, tmp_path: Path) -> None:
    """The real client, in a fresh process: it reads its environment when it is imported."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "hub" / "models--someone--tiny-ltx"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    snapshot = home / "snapshots" / commit
    shutil.copytree(tiny_source, snapshot, copy_function=lambda a, b: Path(b).symlink_to(a))
    script = (
        "import sys\n"
        "from telecine.errors import SourceError\n"
        "from telecine_export.source import open_source\n"
        "source = open_source('someone/tiny-ltx')\n"
        "with source.checkpoint('vae') as vae: print(source.root, *vae.shape('latents_mean'))\n"
        "for name, revision in (('someone/else', None), ('someone/tiny-ltx', 'v2')):\n"
        "    try: open_source(name, revision=revision)\n"
        "    except SourceError as error: print(error)\n"
    )
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    opened, absent, no_revision = done.stdout.splitlines()
    assert opened == f"{snapshot} 16"
    assert "someone/else is not in the hub's cache" in absent
    assert "someone/tiny-ltx is not in the hub's cache" in no_revision
