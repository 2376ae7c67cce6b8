"""An original file with T5 beside it exports to the same weights as the folder that it holds the tensors of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from safetensors.torch import load_file, save_file

from telecine.bundle import Bundle
from telecine.cli import main
from telecine.errors import SourceError
from telecine_export import hub
from telecine_export.families.ltx_video.releases import STATIC, Release
from telecine_export.source import Source, open_source

Write = Callable[..., Path]


def assert_same_tensors(source: Source, other: Source, *components: str) -> None:
    for component in components:
        with source.checkpoint(component) as ours, other.checkpoint(component) as theirs:
            assert set(theirs.names()) <= set(ours.names())
            for name in theirs.names():
                assert ours.shape(name) == theirs.shape(name)
                assert torch.equal(ours.load(name), theirs.load(name)), name


def test_the_bundle_of_a_single_file_has_the_folder_s_weights(
    original_file: Path,
    tiny_source: Path,
    tiny_bundle: Path,
    tiny_release: Release,
    traced_before: None,
    weight_hashes: Any,
    tmp_path: Path,
) -> None:
    arguments = ["export", original_file, tmp_path / "bundle", "--text-encoder", tiny_source, "--json"]
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == 0, done.stderr
    ours, theirs = Bundle.open(tmp_path / "bundle").manifest, Bundle.open(tiny_bundle).manifest
    assert weight_hashes(ours) == weight_hashes(theirs)
    assert ours.tokenizer.sha256 == theirs.tokenizer.sha256
    assert ours.host == theirs.host | {"scheduler": dict(STATIC)}
    assert (ours.variant, ours.pipeline) == ("0.9.5", "LTXPipeline")
    found = json.loads(done.stdout)["source"]
    assert found == done.stderr.splitlines()[: len(found)]
    assert found[0] == "ltx-video 0.9.5, LTXPipeline"
    assert found[2] == f"transformer: {original_file} (F32)"


def test_verify_takes_the_same_parts(
    original_file: Path, tiny_source: Path, tiny_bundle: Path, tiny_release: Release
) -> None:
    """Its torch module is filled with the file's tensors."""
    arguments = [
        tiny_bundle,
        original_file,
        "--text-encoder",
        tiny_source,
        "--stage",
        "tokenizer",
        "--stage",
        "transformer",
    ]
    done = CliRunner().invoke(main, ["verify", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert "verified: tokenizer, transformer" in done.stdout


def test_it_reads_as_diffusers_from_single_file_reads(
    original_file: Path, tiny_source: Path, tiny_release: Any
) -> None:
    source = open_source(str(original_file), text_encoder=str(tiny_source))
    theirs = LTXVideoTransformer3DModel.from_single_file(
        str(original_file), config=str(tiny_source), subfolder="transformer"
    ).state_dict()
    with source.checkpoint("transformer") as checkpoint:
        assert set(checkpoint.names()) == set(theirs)
        assert all(torch.equal(checkpoint.load(name), values) for name, values in theirs.items())


def test_a_first_vae_reads_as_diffusers_from_single_file_reads(
    layouts: Any, written: Write, tiny_source: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    widths = {"block_out_channels": (8, 16, 32, 32), "decoder_block_out_channels": (8, 16, 32, 32)}
    vae: Any = AutoencoderKLLTXVideo(
        **widths, layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, latent_channels=16
    )
    vae.save_pretrained(tmp_path / "base" / "vae")
    shutil.copy(tiny_source / "model_index.json", tmp_path / "base")
    for name in ("transformer", "text_encoder"):
        shutil.copytree(tiny_source / name, tmp_path / "base" / name)
    file = written({f"vae.{layouts.vae(name, '0.9.0')}": values for name, values in vae.state_dict().items()})
    theirs = AutoencoderKLLTXVideo.from_single_file(
        str(file), config=str(tmp_path / "base"), subfolder="vae"
    ).state_dict()
    source = open_source(str(tmp_path / "base"), vae=str(file))
    with source.checkpoint("vae") as checkpoint:
        assert set(checkpoint.names()) == set(theirs)
        assert all(torch.equal(checkpoint.load(name), values) for name, values in theirs.items())


def test_overrides_take_one_component_and_leave_the_others(
    original_file: Path, tiny_source: Path, plain_source: Path, tiny_release: Release
) -> None:
    base, other = open_source(str(tiny_source)), open_source(str(plain_source))
    by_folder = open_source(str(tiny_source), transformer=str(plain_source / "transformer"))
    assert_same_tensors(by_folder, other, "transformer")
    assert_same_tensors(by_folder, base, "vae", "text_encoder")
    by_pipeline = open_source(str(tiny_source), text_encoder=str(plain_source))
    assert_same_tensors(by_pipeline, other, "text_encoder")
    assert by_pipeline.tokenizer == plain_source / "tokenizer"
    by_file = open_source(str(plain_source), transformer=str(original_file))
    assert_same_tensors(by_file, base, "transformer")
    assert_same_tensors(by_file, other, "text_encoder", "vae")
    both = open_source(
        str(original_file), vae=str(plain_source / "vae"), text_encoder=str(plain_source / "text_encoder")
    )
    assert_same_tensors(both, base, "transformer")
    assert_same_tensors(both, other, "vae", "text_encoder")
    assert both.tokenizer == plain_source / "tokenizer"  # beside the text encoder's folder


def test_a_component_s_file_takes_its_configuration_from_the_base(
    tiny_source: Path, plain_source: Path, tmp_path: Path
) -> None:
    """With nothing published that is of its shape."""
    (file,) = (plain_source / "transformer").glob("*.safetensors")
    (t5,) = (plain_source / "text_encoder").glob("*.safetensors")
    source = open_source(str(tiny_source), transformer=str(file), text_encoder=str(t5))
    assert source.config("transformer") == open_source(str(tiny_source)).config("transformer")
    assert_same_tensors(source, open_source(str(plain_source)), "transformer", "text_encoder")
    assert source.tokenizer == tiny_source / "tokenizer"
    with pytest.raises(SourceError, match="has a transformer of no known shape"):
        open_source(str(tiny_source), transformer=str(one_block_less(file, tmp_path)))


def one_block_less(file: Path, folder: Path) -> Path:
    save_file({n: v for n, v in load_file(file).items() if "blocks.1." not in n}, folder / "edited.safetensors")
    return folder / "edited.safetensors"


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "problem"),
        [("model.ckpt", "is a pickle, which runs code"), ("model.pt", "is a pickle"), ("model.bin", "is a pickle")],
    )
    def test_pickles(self, name: str, problem: str, tiny_source: Path, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(b"\x80\x04.")
        pickle, base = str(tmp_path / name), str(tiny_source)
        for arguments in ({"source": pickle}, {"source": base, "vae": pickle}, {"source": base, "loras": [pickle]}):
            with pytest.raises(SourceError, match=f"{problem}.*never unpickles"):
                open_source(**arguments).checkpoint("transformer")

    def test_a_single_file_without_t5(self, original_file: Path, tiny_release: Release) -> None:
        with pytest.raises(SourceError, match="has no text encoder.*Add --text-encoder SOURCE"):
            open_source(str(original_file))

    def test_a_single_file_without_a_tokenizer(
        self, original_file: Path, tiny_source: Path, tiny_release: Release, tmp_path: Path
    ) -> None:
        shutil.copytree(tiny_source / "text_encoder", tmp_path / "t5")
        with pytest.raises(SourceError, match="t5 has no tokenizer"):
            open_source(str(original_file), text_encoder=str(tmp_path / "t5"))
        shutil.copy(tiny_source / "tokenizer" / "tokenizer.json", tmp_path / "t5")
        assert open_source(str(original_file), text_encoder=str(tmp_path / "t5")).tokenizer == tmp_path / "t5"

    def test_half_a_model(self, original_file: Path, written: Write) -> None:
        tensors = load_file(original_file)
        for kept, missing in (("vae.", "transformer"), ("model.", "vae")):
            file = written({name: values for name, values in tensors.items() if name.startswith(kept)})
            with pytest.raises(SourceError, match=f"has no {missing}; .*pass this file as --transformer or --vae"):
                open_source(str(file))

    def test_an_override_without_the_component(self, original_file: Path, tiny_source: Path, written: Write) -> None:
        file = written({n: v for n, v in load_file(original_file).items() if n.startswith("vae.")})
        with pytest.raises(SourceError, match="has no transformer; expected LTX-Video's tensors"):
            open_source(str(tiny_source), transformer=str(file))

    def test_a_truncated_file(self, original_file: Path, tiny_source: Path, tmp_path: Path) -> None:
        half = tmp_path / "half.safetensors"
        half.write_bytes(original_file.read_bytes()[:100_000])
        for arguments in ({"source": str(half)}, {"source": str(tiny_source), "transformer": str(half)}):
            with pytest.raises(SourceError, match="expected a whole safetensors file"):
                open_source(**arguments)

    def test_a_revision_of_a_file(self, original_file: Path) -> None:
        with pytest.raises(SourceError, match="--revision v1 with the file"):
            open_source(str(original_file), revision="v1")

    @pytest.mark.parametrize("option", ["transformer", "vae", "text_encoder"])
    def test_an_override_that_does_not_exist(self, option: str, tiny_source: Path) -> None:
        with pytest.raises(SourceError, match="/no/where does not exist; expected a folder or file with a"):
            open_source(str(tiny_source), **{option: "/no/where"})

    @pytest.mark.parametrize(
        ("part", "key", "theirs"),
        [("vae", "latent_channels", "in_channels"), ("text_encoder", "d_model", "caption_channels")],
    )
    def test_parts_of_different_models(
        self, part: str, key: str, theirs: str, tiny_source: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(tiny_source / part, tmp_path / part)
        path = tmp_path / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: 48}))
        with pytest.raises(SourceError, match=rf"transformer has {theirs} \d+ and .*{part} has {key} 48; .*Check what"):
            open_source(str(tiny_source), **{part: str(tmp_path / part)})


class TestHub:
    @pytest.fixture
    def asked(self, tiny_source: Path, original_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        asked: list[Any] = []

        def snapshot(repository: str, **options: Any) -> str:
            asked.append((repository, options["allow_patterns"]))
            whole = repository != "someone/t5" or "config.json" in options["allow_patterns"]
            return str(tiny_source / "text_encoder" if repository == "someone/t5" else tiny_source if whole else "")

        def file(repository: str, name: str, **options: Any) -> str:
            asked.append((repository, name))
            return str(original_file)

        monkeypatch.setattr(hub, "snapshot_download", snapshot)
        monkeypatch.setattr(hub, "hf_hub_download", file)
        return asked

    def test_a_file_of_a_repository(self, asked: list[Any], tiny_source: Path, tiny_release: Release) -> None:
        source = open_source("Lightricks/LTX-Video/ltxv-2b.safetensors", text_encoder="Lightricks/LTX-Video")
        assert asked[0] == ("Lightricks/LTX-Video", "ltxv-2b.safetensors")
        weights = [pattern for pattern in asked[1][1] if pattern.endswith(".safetensors")]
        assert weights == ["text_encoder/*.safetensors", "tokenizer/*.safetensors"]
        assert_same_tensors(source, open_source(str(tiny_source)), "transformer", "vae", "text_encoder")

    def test_weights_that_are_replaced_are_not_fetched(self, asked: list[Any], tiny_source: Path) -> None:
        open_source("Lightricks/LTX-Video", transformer=str(tiny_source), text_encoder=str(tiny_source))
        ((_, patterns),) = asked
        assert "vae/*.safetensors" in patterns
        assert not {"transformer/*.safetensors", "text_encoder/*.safetensors"}.intersection(patterns)
        assert {"transformer/*.json", "text_encoder/*.json"} <= set(patterns)  # configurations, for files without

    def test_a_repository_that_is_one_component(self, asked: list[Any], tiny_source: Path) -> None:
        source = open_source(str(tiny_source), text_encoder="someone/t5")
        assert [repository for repository, _ in asked] == ["someone/t5", "someone/t5"]
        assert {"config.json", "spiece.model", "tokenizer.model"} <= set(asked[1][1])
        assert source.component("text_encoder").origin == tiny_source / "text_encoder"
