"""Checkpoints as people have them: whole, half downloaded, pickled, sharded, cached by the hub's client."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
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
from safetensors.torch import save_file

from telecine.errors import SourceError
from telecine_export import source as source_module
from telecine_export.families import family_of
from telecine_export.source import Checkpoint, Source, open_source

WEIGHTS = "diffusion_pytorch_model"


def write_weights(path: Path, **tensors: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors or {"weight": torch.arange(6.0).reshape(2, 3)}, path)
    return path


def write_index(folder: Path, weight_map: Any, name: str = f"{WEIGHTS}.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def files_of(folder: Path) -> list[str]:
    return [file.name for file in source_module._weight_files(folder)]


# Folders


def test_a_folder_opens(tiny_source: Path) -> None:
    source = open_source(str(tiny_source))
    assert source == Source(root=tiny_source, pipeline_class="LTXPipeline")
    assert source.config("transformer")["num_layers"] == 2
    assert source.config("scheduler")["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    with source.checkpoint("transformer") as checkpoint:
        assert "proj_in.weight" in checkpoint
        assert "proj_in" not in checkpoint
        assert checkpoint.shape("proj_in.weight") == (64, 16) == tuple(checkpoint.load("proj_in.weight").shape)


@pytest.mark.parametrize("name", ["nowhere", "./no/where", "/no/where", "~nobody/model", "a/b/c"])
def test_a_path_that_does_not_exist_names_what_would(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"does not exist; expected .*hub id such as"):
        open_source(name)


def test_a_single_file_is_refused_with_the_conversion(tmp_path: Path) -> None:
    file = write_weights(tmp_path / "ltx-video-2b-v0.9.5.safetensors")
    with pytest.raises(SourceError, match=r"single file.*from_single_file\(FILE\)\.save_pretrained"):
        open_source(str(file))


def test_a_folder_without_model_index(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"model_index\.json is missing"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "cannot be read"),
        ("[]", "holds a list"),
        ("{}", "names no pipeline class"),
        ('{"_class_name": ["LTXPipeline"]}', "names no pipeline class"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_damaged_model_index(content: str | bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SourceError, match=problem):
        open_source(str(tmp_path))


def test_an_unknown_pipeline_class_lists_the_known(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}')
    with pytest.raises(SourceError, match="is a CogVideoXPipeline; expected one of LTXPipeline"):
        family_of(open_source(str(tmp_path)))


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "scheduler"])
def test_a_component_without_its_configuration(component: str, tiny_source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_source, copy, copy_function=lambda a, b: Path(b).symlink_to(a))
    (removed,) = copy.glob(f"{component}/*config.json")
    removed.unlink()
    with pytest.raises(SourceError, match=rf"{component}/\w+\.json is missing"):
        open_source(str(copy)).config(component)


def test_a_revision_of_a_folder_is_refused(tiny_source: Path) -> None:
    with pytest.raises(SourceError, match="--revision v1 with the folder"):
        open_source(str(tiny_source), revision="v1")


# Weights files


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no safetensors"):
        Checkpoint(tmp_path)


class _Boom:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("unpickled"),))


@pytest.mark.parametrize("name", [f"{WEIGHTS}.bin", "model.pt", "model.pth", "model.ckpt"])
def test_a_pickle_is_refused_and_never_read(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(_Boom()))
    with pytest.raises(SourceError, match=rf"has {name}, a pickle, and no safetensors.*never unpickles"):
        Checkpoint(tmp_path)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(
    "names",
    [
        [f"{WEIGHTS}.safetensors", f"{WEIGHTS}.fp16.safetensors"],
        ["model.safetensors", "model.fp16.safetensors", "model.bf16.safetensors"],
        [f"{WEIGHTS}.safetensors", f"{WEIGHTS}.bin"],
        [f"{WEIGHTS}.fp16.safetensors"],  # all there is
        ["ltx-vae.safetensors"],
    ],
)
def test_the_file_without_a_variant_is_read(names: list[str], tmp_path: Path) -> None:
    for name in names:
        write_weights(tmp_path / name)
    assert files_of(tmp_path) == names[:1]


def test_shards_beat_nothing_and_a_variant_index_stays_unread(tmp_path: Path) -> None:
    for variant in ("", ".fp16"):
        for number in (1, 2):
            write_weights(tmp_path / f"{WEIGHTS}{variant}-0000{number}-of-00002.safetensors")
    names = [f"{WEIGHTS}-00001-of-00002.safetensors", f"{WEIGHTS}-00002-of-00002.safetensors"]
    fp16 = [name.replace(WEIGHTS, f"{WEIGHTS}.fp16") for name in names]
    write_index(tmp_path, {"a": fp16[0], "b": fp16[1]}, f"{WEIGHTS}.safetensors.index.fp16.json")
    assert files_of(tmp_path) == fp16  # the one index there is
    write_index(tmp_path, {"a": names[1], "b": names[0]})
    assert files_of(tmp_path) == names


def test_several_files_without_an_index(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        write_weights(tmp_path / name)
    with pytest.raises(SourceError, match=r"2 safetensors files and no index: a\.safetensors, b\.safetensors"):
        Checkpoint(tmp_path)


def test_a_sharded_checkpoint_reads_each_tensor_from_its_shard(tmp_path: Path) -> None:
    first, second = torch.randn(2, 3), torch.randn(4)
    write_weights(tmp_path / "model-00001-of-00002.safetensors", a=first)
    write_weights(tmp_path / "model-00002-of-00002.safetensors", b=second)
    write_index(
        tmp_path,
        {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
        "model.safetensors.index.json",
    )
    with Checkpoint(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.load("a"), first)
        assert torch.equal(checkpoint.load("b"), second)
        with pytest.raises(SourceError, match="has no tensor c"):
            checkpoint.load("c")


@pytest.mark.parametrize(
    ("weight_map", "problem"),
    [
        ({"a": f"{WEIGHTS}-00001-of-00002.safetensors", "b": "gone.safetensors"}, r"lacks gone\.safetensors"),
        ({}, "lacks every shard"),
        ([], "lacks every shard"),
        (None, "lacks every shard"),
        ({"a": 3}, "lacks 3"),
        ({"a": "../outside.safetensors"}, r"lacks \.\./outside\.safetensors"),
    ],
)
def test_an_index_that_does_not_fit_its_folder(weight_map: Any, problem: str, tmp_path: Path) -> None:
    write_weights(tmp_path / "outside.safetensors")
    write_weights(tmp_path / "part" / f"{WEIGHTS}-00001-of-00002.safetensors")
    write_index(tmp_path / "part", weight_map)
    with pytest.raises(SourceError, match=problem):
        Checkpoint(tmp_path / "part")


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_truncated_file(kept: int, tmp_path: Path) -> None:
    file = write_weights(tmp_path / f"{WEIGHTS}.safetensors")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(SourceError, match=r"cannot be read.*expected a whole safetensors file"):
        Checkpoint(tmp_path)


def test_a_git_lfs_pointer_is_no_safetensors(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3846774784\n"
    (tmp_path / f"{WEIGHTS}.safetensors").write_text(pointer)
    with pytest.raises(SourceError, match="expected a whole safetensors file"):
        Checkpoint(tmp_path)


# The hub


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

    monkeypatch.setattr(source_module, "snapshot_download", download)
    with pytest.raises(SourceError, match=problem) as caught:
        open_source("some/model")
    assert caught.value.__cause__ is raised


def test_the_revision_and_the_component_folders_are_asked_for(tiny_source: Path, monkeypatch: Any) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tiny_source)

    monkeypatch.setattr(source_module, "snapshot_download", download)
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

    monkeypatch.setattr(source_module, "snapshot_download", download)
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
