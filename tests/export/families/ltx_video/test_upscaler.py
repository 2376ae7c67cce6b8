"""Latent upsamplers: where `--upscaler` finds them, their graphs in every mode, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from safetensors.torch import load_file, save_file

from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.bundle import Bundle
from telecine.cli import main
from telecine.errors import BundleError, SourceError
from telecine_export import export
from telecine_export.components import FolderComponent
from telecine_export.export import Progress, export_component
from telecine_export.families.ltx_video import upsampler as ltx_upsampler
from telecine_export.families.ltx_video.networks import graphs, host, presets
from telecine_export.families.upscaler import with_upscaler
from telecine_export.family import family_of
from telecine_export.source import Source, open_source
from telecine_export.verify import verify_bundle

CONFIG = {
    "in_channels": 16, "mid_channels": 32, "num_blocks_per_stage": 1, "dims": 3,
    "spatial_upsample": True, "temporal_upsample": False,
}  # fmt: skip
# One pass in float32: convolutions of 27 * 32 products summed in another order, normalised in groups of one channel.
TOLERANCE = 3e-5


@pytest.fixture
def source(tiny_source: Path) -> Source:
    return open_source(str(tiny_source))


@pytest.fixture
def original(tiny_upscaler: Path, tmp_path: Path) -> Path:
    """`tiny_upscaler` as Lightricks publishes them: one file, with the configuration in its metadata."""
    folder = tiny_upscaler / "latent_upsampler"
    config = json.loads((folder / "config.json").read_text())
    metadata = {"config": json.dumps({"_class_name": "LatentUpsampler"} | {name: config[name] for name in CONFIG})}
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file(tensors, tmp_path / "upscaler.safetensors", metadata=metadata)
    return tmp_path / "upscaler.safetensors"


@pytest.fixture
def changed_upscaler(tiny_upscaler: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "changed"
    shutil.copytree(tiny_upscaler, copy)
    return copy


class TestGraph:
    # Spatial and temporal ones, at dims 3, are what the parity tests run.
    @pytest.mark.parametrize(
        ("change", "opset"),
        [
            ({"dims": 2, "num_blocks_per_stage": 2}, 23),
            ({"temporal_upsample": True, "mid_channels": 64}, 23),
            ({}, 20),
        ],
        ids=["frame-by-frame", "space-and-time", "opset-20"],
    )
    def test_it_is_torchs_at_sizes_that_were_not_traced(
        self, change: dict[str, Any], opset: int, tmp_path: Path
    ) -> None:
        config = CONFIG | change
        torch.manual_seed(0)
        model: Any = LTXLatentUpsamplerModel(**config).eval()
        model.save_pretrained(tmp_path / "model")
        part = FolderComponent(tmp_path / "model")
        source = Source(root=tmp_path, pipeline_class="LTXPipeline", components={"latent_upsampler": part})
        spec = ltx_upsampler.latent_upsampler(config, latent_channels=16)
        component = export_component(source, tmp_path, [spec], precision="fp32", opset=opset, progress=Progress())
        assert component.parameters == sum(parameter.numel() for parameter in model.parameters())
        graph = component.graphs["main"]
        path = tmp_path / graph.file.path
        with OnnxRuntimeSession.load(graph, path, device="cpu", options=OnnxRuntimeOptions()) as session:
            for shape in ((1, 16, 1, 3, 1), (3, 16, 2, 2, 5), (2, 16, 5, 3, 2)):
                latents = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
                with torch.no_grad():
                    expected = model(torch.from_numpy(latents)).numpy()
                made = session.run({"latents": latents})["latents_upsampled"]
                np.testing.assert_allclose(made, expected, atol=TOLERANCE, rtol=0)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"in_channels": 128}, "latents with 128 channels; expected 16"),
            ({"spatial_upsample": False}, "neither space nor time"),
            ({"dims": 2, "temporal_upsample": True}, "dims 2 and temporal_upsample"),
            ({"dims": 1}, "dims 1"),
            ({"mid_channels": 48}, "48 mid_channels"),
        ],
    )
    def test_configurations_that_cannot_run_are_refused(self, change: dict[str, Any], words: str) -> None:
        with pytest.raises(SourceError, match=words):
            ltx_upsampler.latent_upsampler(CONFIG | change, latent_channels=16)


class TestSources:
    def test_every_form_of_one_upscaler_gives_the_same_weights(
        self, source: Source, tiny_upscaler: Path, original: Path, tmp_path: Path
    ) -> None:
        hashes = set()
        for number, given in enumerate((tiny_upscaler, tiny_upscaler / "latent_upsampler", original)):
            opened = with_upscaler(source, str(given))
            (spec,) = [spec for spec in graphs(opened) if spec.component == "latent_upsampler"]
            folder = tmp_path / str(number)
            folder.mkdir()
            component = export_component(opened, folder, [spec], precision="fp32", opset=23, progress=Progress())
            hashes.add((component.weights.sha256, component.graphs["main"].file.sha256))
        assert len(hashes) == 1

    def test_the_source_gains_a_graph_host_settings_and_presets(self, source: Source, tiny_upscaler: Path) -> None:
        opened = with_upscaler(source, str(tiny_upscaler))
        components = {spec.component for spec in graphs(opened)}
        assert components == {spec.component for spec in graphs(source)} | {"latent_upsampler"}
        assert host(opened) == host(source) | {"upsampler": {"spatial_factor": 2, "temporal_factor": 1}}
        named = presets(opened)
        assert set(named) - set(presets(source)) == {
            "two-stage", "two-stage-distilled", "two-stage-distilled-0.9.8",
        }  # fmt: skip
        assert named["two-stage"]["second_stage"]["denoise_strength"] == 0.4
        assert named["two-stage-distilled-0.9.8"]["second_stage"]["tone_map_compression_ratio"] == 0.6

    def test_a_temporal_upsampler_serves_no_recipe(self, plain_source: Path, temporal_upscaler: Path) -> None:
        opened = with_upscaler(open_source(str(plain_source)), str(temporal_upscaler))
        assert host(opened)["upsampler"] == {"spatial_factor": 1, "temporal_factor": 2}
        assert set(presets(opened)) == {"recommended"}

    def test_an_upscaler_of_another_vae_is_refused(self, source: Source, temporal_upscaler: Path) -> None:
        with pytest.raises(SourceError, match="in latents_mean"):
            with_upscaler(source, str(temporal_upscaler))

    def test_statistics_in_half_precision_are_the_same(self, source: Source, changed_upscaler: Path) -> None:
        path = changed_upscaler / "vae" / "diffusion_pytorch_model.safetensors"
        save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
        assert "latent_upsampler" in with_upscaler(source, str(changed_upscaler)).components

    def test_an_upscaler_without_a_vae_is_taken(self, source: Source, changed_upscaler: Path) -> None:
        shutil.rmtree(changed_upscaler / "vae")
        assert "latent_upsampler" in with_upscaler(source, str(changed_upscaler)).components

    def test_what_is_no_upscaler_is_refused(self, source: Source, tiny_source: Path, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="is a LTXPipeline; expected a LTXLatentUpsamplePipeline"):
            with_upscaler(source, str(tiny_source))
        with pytest.raises(SourceError, match="without mid_channels"):
            with_upscaler(source, str(tiny_source / "vae"))
        with pytest.raises(SourceError, match="does not exist"):
            with_upscaler(source, str(tmp_path / "nowhere"))

    def test_single_files_without_a_configuration_or_damaged(
        self, source: Source, original: Path, tmp_path: Path
    ) -> None:
        save_file(load_file(original), tmp_path / "bare.safetensors")
        with pytest.raises(SourceError, match="no configuration in its metadata"):
            with_upscaler(source, str(tmp_path / "bare.safetensors"))
        original.write_bytes(original.read_bytes()[:100])
        with pytest.raises(SourceError, match="cannot be read"):
            with_upscaler(source, str(original))

    def test_an_upscaler_alone_is_no_model(self, tiny_upscaler: Path) -> None:
        with pytest.raises(SourceError, match=r"without transformer and text encoder.*MODEL BUNDLE --upscaler"):
            family_of(open_source(str(tiny_upscaler)))


def test_the_command_line_adds_it(
    tiny_source: Path, tiny_upscaler: Path, upscaler_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Source] = []
    made = Bundle.open(upscaler_bundle)
    monkeypatch.setattr(export, "export_bundle", lambda source, *_, **__: seen.append(source) or made)
    command = ["export", str(tiny_source), str(tmp_path / "bundle"), "--upscaler", str(tiny_upscaler)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert set(seen[0].components) == {"latent_upsampler"}


class TestVerify:
    def test_it_compares_the_graph(self, upscaler_bundle: Path, tiny_source: Path, original: Path) -> None:
        """Against the original file, which has the weights that the bundle was exported with."""
        command = ["verify", str(upscaler_bundle), str(tiny_source), "--upscaler", str(original)]
        result = CliRunner().invoke(main, [*command, "--stage", "latent_upsampler", "--json"])
        assert result.exit_code == 0, result.output
        (stage,) = json.loads(result.stdout)["stages"]
        assert (stage["name"], len(stage["cases"])) == ("latent_upsampler", 3)
        assert stage["max_abs"] < stage["tolerance"] < 1e-4

    def test_other_weights_are_caught(self, upscaler_bundle: Path, source: Source, changed_upscaler: Path) -> None:
        path = changed_upscaler / "latent_upsampler" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        tensors["post_upsample_res_blocks.0.norm2.weight"][3] += 1e-2
        save_file(tensors, path)
        report = verify_bundle(
            upscaler_bundle, with_upscaler(source, str(changed_upscaler)), stages=["latent_upsampler"]
        )
        assert report.first_divergence == "latent_upsampler"

    def test_it_is_a_stage_of_bundles_that_have_one(
        self, upscaler_bundle: Path, tiny_bundle: Path, source: Source, tiny_upscaler: Path
    ) -> None:
        with pytest.raises(SourceError, match="Pass --upscaler, or name the other stages"):
            verify_bundle(upscaler_bundle, source)
        assert verify_bundle(upscaler_bundle, source, stages=["text_encoder"]).passed
        with pytest.raises(BundleError, match="has no latent_upsampler"):
            verify_bundle(tiny_bundle, with_upscaler(source, str(tiny_upscaler)))


def test_a_bundle_is_what_the_manifest_of_export_says(upscaler_bundle: Path, tiny_bundle: Path) -> None:
    manifest, without = Bundle.open(upscaler_bundle).manifest, Bundle.open(tiny_bundle).manifest
    (output,) = manifest.components["latent_upsampler"].graphs["main"].outputs
    assert output.shape == ("batch", 16, "latent_frames", "2*latent_height", "2*latent_width")
    changed = {"components": {}, "host": {}, "presets": {}}
    assert dataclasses.replace(manifest, **changed) == dataclasses.replace(without, **changed)
