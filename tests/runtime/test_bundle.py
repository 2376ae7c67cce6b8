"""A bundle is opened only if it is the one that export wrote."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from telecine import bundle as module
from telecine.bundle import Bundle, is_bundle, sha256
from telecine.errors import BundleError
from telecine.manifest import FILE_NAME, FORMAT, FileEntry

NETWORKS = ["text_encoder", "transformer", "vae_encoder", "vae_decoder"]
COMPONENTS = [*NETWORKS, "denoise_step", "decoder_latents", "uint8_frames"]
SMALL_FILES = [
    "tokenizer/tokenizer.json",
    *(f"{name}/main.onnx" for name in COMPONENTS),
    "transformer/main.onnxruntime-cpu.onnx",
]
WEIGHTS = [f"{name}/weights.bin" for name in NETWORKS]


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def test_a_whole_bundle_opens(tiny_bundle: Path) -> None:
    bundle = Bundle.open(str(tiny_bundle))
    assert list(bundle.manifest.components) == COMPONENTS
    assert sorted(entry.path for entry in bundle.hashed_files()) == sorted(SMALL_FILES)
    bundle.check_weights()
    assert [bundle.component(name).weights.size for name in COMPONENTS if name not in NETWORKS] == [0, 0, 0]
    assert is_bundle(tiny_bundle)
    assert not is_bundle(tiny_bundle.parent)


def test_a_read_only_bundle_opens(copy: Path) -> None:
    for path in [*copy.rglob("*"), copy]:
        path.chmod(path.stat().st_mode & ~0o222)
    Bundle.open(copy)
    for path in [copy, *(path for path in copy.rglob("*") if path.is_dir())]:
        path.chmod(0o755)  # for pytest's own cleaning


@pytest.mark.parametrize("name", [*SMALL_FILES, *WEIGHTS])
@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "a folder"])
def test_missing_and_cut_files_are_named(copy: Path, name: str, damage: str) -> None:
    path = copy / name
    size = path.stat().st_size
    if damage == "truncated":
        os.truncate(path, size - 1)
    elif damage == "longer":
        os.truncate(path, size + 1)
    else:
        path.unlink()
        if damage == "a folder":
            path.mkdir()
    with pytest.raises(BundleError) as caught:
        Bundle.open(copy)
    assert str(path) in str(caught.value)
    assert str(size) in caught.value.expected
    assert ("is missing" if damage in ("missing", "a folder") else f"has {path.stat().st_size} bytes") in str(
        caught.value
    )


@pytest.mark.parametrize("name", SMALL_FILES)
def test_an_edited_small_file_is_refused_at_opening(copy: Path, name: str) -> None:
    flip(copy / name, (copy / name).stat().st_size // 2)
    with pytest.raises(BundleError, match=f"{name} has changed"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", WEIGHTS)
def test_edited_weights_are_refused_by_the_full_check(copy: Path, name: str) -> None:
    flip(copy / name, 100)
    bundle = Bundle.open(copy)
    with pytest.raises(BundleError, match=f"{name} has changed"):
        bundle.check_weights()


@pytest.mark.parametrize("path", ["../weights.bin", "/etc/passwd", "a/../../x", "..", "transformer/../../x"])
def test_paths_that_leave_the_bundle_are_refused(
    tiny_bundle: Path, edited_bundle: Callable[..., Path], path: str
) -> None:
    outside = FileEntry(path=path, size=1, sha256="")
    with pytest.raises(BundleError, match=r"names .*; expected paths inside the bundle\. Do not use this bundle"):
        Bundle.open(edited_bundle(tiny_bundle, tokenizer=outside))


@pytest.mark.parametrize("part", ["weights", "graph"])
def test_a_components_paths_are_checked_too(tiny_bundle: Path, edited_bundle: Callable[..., Path], part: str) -> None:
    components = dict(Bundle.open(tiny_bundle).manifest.components)
    outside = FileEntry(path="../x", size=1, sha256="")
    component = components["transformer"]
    if part == "weights":
        component = dataclasses.replace(component, weights=outside)
    else:
        graph = dataclasses.replace(component.graphs["main"], file=outside)
        component = dataclasses.replace(component, graphs={"main": graph})
    with pytest.raises(BundleError, match="paths inside the bundle"):
        Bundle.open(edited_bundle(tiny_bundle, components=components | {"transformer": component}))


@pytest.mark.parametrize("path", ["", ".", "transformer", "no/such", "a\0b"])
def test_paths_that_name_no_file_are_refused(tiny_bundle: Path, edited_bundle: Callable[..., Path], path: str) -> None:
    with pytest.raises(BundleError, match="is missing"):
        Bundle.open(edited_bundle(tiny_bundle, tokenizer=FileEntry(path=path, size=1, sha256="")))


def test_what_is_no_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle: it has no telecine.json.*telecine export"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="nowhere does not exist.*telecine export"):
        Bundle.open(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.open(tmp_path / "file")


def test_a_name_with_a_tilde_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="~nobody-has-this-name does not exist"):
        Bundle.open("~nobody-has-this-name")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BundleError, match=f"{tmp_path}/bundle does not exist"):
        Bundle.open("~/bundle")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"{}", b"not json"])
def test_a_damaged_manifest_is_refused(copy: Path, content: bytes) -> None:
    (copy / FILE_NAME).write_bytes(content)
    with pytest.raises(BundleError, match=FILE_NAME):
        Bundle.open(copy)


def test_an_edited_manifest_is_refused(copy: Path) -> None:
    text = (copy / FILE_NAME).read_text()
    (copy / FILE_NAME).write_text(text.replace('"num_inference_steps": 40', '"num_inference_steps": 41'))
    with pytest.raises(BundleError, match="was edited or cut"):
        Bundle.open(copy)


def test_a_newer_bundle_is_refused_before_its_files_are_read(
    tiny_bundle: Path, edited_bundle: Callable[..., Path]
) -> None:
    copy = edited_bundle(tiny_bundle, format=FORMAT + 1)
    shutil.rmtree(copy / "transformer")
    with pytest.raises(BundleError, match="Upgrade"):
        Bundle.open(copy)


def test_a_file_that_cannot_be_read_is_a_bundle_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "sha256", refuse)
    with pytest.raises(BundleError, match=r"tokenizer.json cannot be read \(Permission denied\)"):
        Bundle.open(tiny_bundle)


def test_components_and_roles_are_looked_up_by_name(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert bundle.graph("transformer").file.path == "transformer/main.onnx"
    with pytest.raises(BundleError, match=r"has no latent_upsampler; expected one of its components: text_encoder"):
        bundle.graph("latent_upsampler")
    with pytest.raises(BundleError, match="vae_decoder of .* has no graph next; expected one of its roles: main"):
        bundle.graph("vae_decoder", "next")


def test_sha256_reads_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100)
    whole = sha256(tmp_path / "file")
    monkeypatch.setattr(module, "PIECE", 7)
    assert sha256(tmp_path / "file") == whole
    assert whole == hashlib.sha256(b"abc" * 100).hexdigest()
