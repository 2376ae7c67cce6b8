"""A bundle is whole or absent: what export writes, what it refuses, and what is left when it is killed."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from telecine.bundle import Bundle, sha256
from telecine.cli import main
from telecine.errors import RequestError, SourceError
from telecine_export import export as module
from telecine_export.export import ComponentReport, Progress, export_bundle
from telecine_export.families.ltx_video.networks import rope_frequencies
from telecine_export.family import FAMILIES, LTX_VIDEO
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source, open_source
from telecine_export.weights import WeightsWriter

HOST_MATH = ["denoise_step", "decoder_latents", "uint8_frames"]
COMPONENTS = ["text_encoder", "transformer", "vae_encoder", "vae_decoder", *HOST_MATH]


@pytest.fixture
def without_tracing(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> list[str]:
    """Exports copy their components from a bundle that was traced before: these tests are about the rest."""
    traced: list[str] = []

    def copy(source: object, folder: Path, specs: list, **options: object) -> object:
        name = specs[0].component
        traced.append(name)
        shutil.copytree(tiny_bundle / name, folder / name)
        return Bundle.open(tiny_bundle).component(name)

    monkeypatch.setattr(module, "export_component", copy)
    return traced


@pytest.fixture
def text_encoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real exports of the component that traces in seconds."""

    def graphs(source: Source) -> list[GraphSpec]:
        return [spec for spec in LTX_VIDEO.graphs(source) if spec.component == "text_encoder"]

    monkeypatch.setitem(FAMILIES, "LTXPipeline", dataclasses.replace(LTX_VIDEO, graphs=graphs))  # type: ignore[arg-type]


def copy_of(source: Path, path: Path) -> Path:
    shutil.copytree(source, path)
    return path


def leftovers(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


class TestManifest:
    def test_components_in_order_with_their_files(self, tiny_bundle: Path) -> None:
        manifest = Bundle.open(tiny_bundle).manifest
        assert list(manifest.components) == COMPONENTS
        assert (manifest.family, manifest.variant, manifest.pipeline) == ("ltx-video", "0.9.5", "LTXPipeline")
        for name, component in manifest.components.items():
            assert (component.precision, component.opset) == ("fp32", 23)
            weights = tiny_bundle / component.weights.path
            assert weights == tiny_bundle / name / "weights.bin"
            assert (weights.stat().st_size, sha256(weights)) == (component.weights.size, component.weights.sha256)
            assert list(component.graphs) == ["main"]
            assert (component.parameters == 0) == (component.weights.size == 0) == (name in HOST_MATH)

    def test_parameters_are_the_checkpoints(self, tiny_bundle: Path, tiny_source: Path) -> None:
        components = Bundle.open(tiny_bundle).manifest.components
        (file,) = (tiny_source / "transformer").glob("*.safetensors")
        assert components["transformer"].parameters == sum(tensor.numel() for tensor in load_file(file).values())

    def test_the_graph_contracts(self, tiny_bundle: Path) -> None:
        bundle = Bundle.open(tiny_bundle)
        inputs = {spec.name: (spec.dtype, spec.shape) for spec in bundle.graph("transformer").inputs}
        assert inputs == {
            "hidden_states": ("float32", ("batch", "tokens", 16)),
            "encoder_hidden_states": ("float32", ("batch", "text_length", 32)),
            "encoder_attention_mask": ("float32", ("batch", "text_length")),
            "timestep": ("float32", ("batch", "timestep_tokens")),
            "rope_cos": ("float32", (3, "rope_positions", 10)),
            "rope_sin": ("float32", (3, "rope_positions", 10)),
            "rope_index": ("int32", ("tokens", 3)),
            "stg_mode": ("int32", (2, "batch")),
        }
        (video,) = bundle.graph("vae_decoder").outputs
        pixels = ("8*latent_frames-7", "32*latent_height", "32*latent_width")
        assert (video.name, video.shape) == ("video", ("batch", 3, *pixels))

    def test_the_contracts_of_host_math(self, tiny_bundle: Path) -> None:
        bundle = Bundle.open(tiny_bundle)
        inputs = {spec.name: spec.shape for spec in bundle.graph("denoise_step").inputs}
        latents = ("batch", "tokens", "channels")
        assert inputs == {
            "predictions": ("passes", *latents),
            "guidance": (3, "passes"),
            "rescale": (1,),
            **dict.fromkeys(("sample", "noise", "anchor"), latents),
            "coefficients": (6, "coefficient_tokens", 1),
        }
        sides = ("latent_frames", "latent_height", "latent_width")
        (made,) = bundle.graph("decoder_latents").outputs
        assert bundle.graph("decoder_latents").inputs[0].shape == ("batch", *sides, 16)
        assert (made.name, made.shape) == ("decoder_latents", ("batch", 16, *sides))
        (frames,) = bundle.graph("uint8_frames").outputs
        assert (frames.dtype, frames.shape) == ("uint8", ("batch", "num_frames", "height", "width", 3))

    def test_host_floats_survive_json_to_the_last_bit(self, tiny_bundle: Path, tiny_source: Path) -> None:
        host = Bundle.open(tiny_bundle).manifest.host
        source = open_source(str(tiny_source))
        expected = rope_frequencies(source.config("transformer")).numpy()
        np.testing.assert_array_equal(np.array(host["rope_frequencies"], np.float32), expected)
        with source.checkpoint("vae") as checkpoint:
            for name in ("latents_mean", "latents_std"):
                assert torch.equal(torch.tensor(host[name]), checkpoint.load(name))
        assert host["scheduler"] == source.config("scheduler")

    def test_packages_and_presets_are_recorded(self, tiny_bundle: Path) -> None:
        manifest = Bundle.open(tiny_bundle).manifest
        assert {"telecine", "torch", "diffusers", "onnx"} <= set(manifest.versions)
        assert manifest.presets["recommended"]["decode_timestep"] == 0.05

    def test_no_path_of_the_exporting_machine_is_in_a_graph(self, tiny_bundle: Path) -> None:
        for name in COMPONENTS:
            content = (tiny_bundle / name / "main.onnx").read_bytes()
            assert b"site-packages" not in content
            assert b".py" not in content


class TestWholeOrAbsent:
    def test_an_existing_bundle_is_refused_at_once(
        self, tiny_source: Path, tiny_bundle: Path, without_tracing: list[str]
    ) -> None:
        with pytest.raises(RequestError, match="exists and is not empty"):
            export_bundle(open_source(str(tiny_source)), tiny_bundle)
        assert without_tracing == []

    def test_overwrite_replaces_a_bundle(self, tiny_source: Path, tmp_path: Path, without_tracing: list[str]) -> None:
        source, target = open_source(str(tiny_source)), tmp_path / "bundle"
        export_bundle(source, target)
        (target / "stray").touch()
        export_bundle(source, target, overwrite=True)
        assert not (target / "stray").exists()
        assert leftovers(tmp_path) == ["bundle"]

    def test_overwrite_replaces_nothing_else(
        self, tiny_source: Path, tmp_path: Path, without_tracing: list[str]
    ) -> None:
        precious = tmp_path / "thesis.txt"
        precious.write_text("years of work")
        with pytest.raises(RequestError, match="did not write"):
            export_bundle(open_source(str(tiny_source)), tmp_path, overwrite=True)
        assert precious.read_text() == "years of work"

    def test_a_fault_midway_leaves_nothing(
        self, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_tracing: list[str]
    ) -> None:
        copy = module.export_component

        def failing(source: object, folder: Path, specs: list, **options: object) -> object:
            if specs[0].component == "vae_encoder":
                raise SourceError("a broken tensor", expected="a whole one", fix="Download it again.")
            return copy(source, folder, specs, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "export_component", failing)
        with pytest.raises(SourceError, match="a broken tensor"):
            export_bundle(open_source(str(tiny_source)), tmp_path / "bundle")
        assert without_tracing == ["text_encoder", "transformer"]
        assert leftovers(tmp_path) == []

    def test_a_full_disk_is_named_and_leaves_nothing(
        self, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*arguments: object, **options: object) -> object:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(module, "export_component", full)
        with pytest.raises(RequestError, match="No space left on device"):
            export_bundle(open_source(str(tiny_source)), tmp_path / "bundle")
        assert leftovers(tmp_path) == []

    def test_a_disk_that_fills_up_under_the_weights(
        self, text_encoder_alone: None, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = WeightsWriter._put

        def put(writer: WeightsWriter, data: bytes | memoryview) -> None:
            if writer._file.tell() > 10_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(writer, data)

        monkeypatch.setattr(WeightsWriter, "_put", put)
        with pytest.raises(RequestError, match=r"writing .*bundle failed \(No space left on device\)"):
            export_bundle(open_source(str(tiny_source)), tmp_path / "bundle")
        assert leftovers(tmp_path) == []

    def test_a_tensor_of_another_model_leaves_nothing(
        self, text_encoder_alone: None, tiny_source: Path, tmp_path: Path
    ) -> None:
        source, target = copy_of(tiny_source, tmp_path / "source"), tmp_path / "bundles" / "bundle"
        file = source / "text_encoder" / "model.safetensors"
        tensors = load_file(file)
        last = list(tensors)[-1]
        save_file(tensors | {last: torch.zeros(3, 5)}, file)
        with pytest.raises(SourceError, match=r"has shape \[3, 5\]; expected .*config\.json"):
            export_bundle(open_source(str(source)), target)
        assert leftovers(target.parent) == []

    @pytest.mark.parametrize(
        ("broken", "problem"),
        [
            ("vae/diffusion_pytorch_model.safetensors", "cannot be read"),
            ("transformer/diffusion_pytorch_model.safetensors", "cannot be read"),
            ("tokenizer/tokenizer.json", "damaged"),
            ("scheduler/scheduler_config.json", "cannot be read"),
        ],
    )
    def test_a_damaged_source_is_refused_before_the_first_trace(
        self, broken: str, problem: str, tiny_source: Path, tmp_path: Path, without_tracing: list[str]
    ) -> None:
        source = copy_of(tiny_source, tmp_path / "source")
        content = (source / broken).read_bytes()
        (source / broken).write_bytes(content[: len(content) // 2])
        with pytest.raises(SourceError, match=problem):
            export_bundle(open_source(str(source)), tmp_path / "bundle")
        assert without_tracing == []
        assert leftovers(tmp_path) == ["source"]

    @pytest.mark.parametrize("option", [{"precision": "int3"}, {"components": {"unet": "fp16"}}, {"opset": 17}])
    def test_options_that_cannot_act_are_refused(
        self, option: dict, tiny_source: Path, tmp_path: Path, without_tracing: list[str]
    ) -> None:
        with pytest.raises(SourceError, match="expected one of"):
            export_bundle(open_source(str(tiny_source)), tmp_path / "bundle", **option)
        assert without_tracing == []

    def test_progress_tells_components_bytes_and_memory(self, tiny_source: Path, tmp_path: Path) -> None:
        events: list[str] = []
        written: list[int] = []
        reports: list[ComponentReport] = []
        source = open_source(str(tiny_source))
        (spec,) = [spec for spec in module.family_of(source).graphs(source) if spec.component == "text_encoder"]
        progress = Progress(started=events.append, wrote=written.append, finished=reports.append)
        module.export_component(source, tmp_path, [spec], precision="fp32", opset=23, progress=progress)
        (report,) = reports
        assert events == ["text_encoder"]
        assert (report.name, report.parameters * 4) == ("text_encoder", sum(written))
        assert report.seconds > 0
        assert report.peak_memory > 50e6  # torch alone has more


class TestKilled:
    def test_sigkill_leaves_no_bundle_and_the_next_run_succeeds(
        self, tiny_source: Path, tmp_path: Path, without_tracing: list[str]
    ) -> None:
        """The process dies for real, with weights half written in its partial folder."""
        target = tmp_path / "bundle"
        telecine = Path(sys.executable).with_name("telecine")
        command = [telecine, "export", str(tiny_source), str(target)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            self.wait_for(lambda: list(tmp_path.glob(".bundle.partial-*/*/weights.bin")), process)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not target.exists()
        (partial,) = tmp_path.iterdir()
        assert partial.name.startswith(".bundle.partial-")

        export_bundle(open_source(str(tiny_source)), target)
        assert leftovers(tmp_path) == ["bundle"]
        Bundle.open(target).check_weights()

    @staticmethod
    def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
        for _ in range(1200):
            if condition():
                return
            assert process.poll() is None, "the export ended before it could be killed"
            time.sleep(0.05)
        pytest.fail("the export wrote no weights within a minute")


class TestCommandLine:
    def test_the_bundle_is_printed(self, tiny_source: Path, tmp_path: Path, without_tracing: list[str]) -> None:
        result = CliRunner().invoke(main, ["export", str(tiny_source), str(tmp_path / "bundle")])
        assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'bundle'}\n")

    def test_json(self, tiny_source: Path, tmp_path: Path, without_tracing: list[str]) -> None:
        result = CliRunner().invoke(main, ["export", str(tiny_source), str(tmp_path / "bundle"), "--json"])
        assert json.loads(result.stdout)["bundle"] == str(tmp_path / "bundle")

    def test_a_real_export_reports_its_components(
        self, text_encoder_alone: None, tiny_source: Path, tmp_path: Path
    ) -> None:
        target = tmp_path / "bundle"
        result = CliRunner().invoke(main, ["export", str(tiny_source), str(target), "--opset", "20", "--json"])
        assert result.exit_code == 0, result.stderr
        (report,) = json.loads(result.stdout)["components"]
        component = Bundle.open(target).component("text_encoder")
        assert (report["name"], report["parameters"]) == ("text_encoder", component.parameters)
        assert report["size"] == component.weights.size
        assert component.opset == 20

    def test_precision_by_component_without_the_gate(
        self, text_encoder_alone: None, tiny_source: Path, tmp_path: Path
    ) -> None:
        options = ["--precision", "bf16", "--component", "text_encoder=fp16", "--no-gate", "--json"]
        result = CliRunner().invoke(main, ["export", str(tiny_source), str(tmp_path / "bundle"), *options])
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["quality"]["measured"] is False
        bundle = Bundle.open(tmp_path / "bundle")
        assert bundle.component("text_encoder").precision == "fp16"
        assert not bundle.manifest.quality.measured
        inspected = CliRunner().invoke(main, ["inspect", str(tmp_path / "bundle")])
        assert "quality next to fp32: not measured" in inspected.stdout
        assert leftovers(tmp_path) == ["bundle"]  # and no reference beside it

    @pytest.mark.parametrize(
        ("options", "code"),
        [
            (["--precision", "int3"], 1),
            (["--component", "vae_decoder=fp8"], 1),
            (["--component", "vae_decoder"], 2),
            (["--precision", "fp16", "--no-gate", "--floor", "30"], 2),
            (["--precision", "fp16", "--no-gate", "--auto-promote"], 2),
            (["--precision", "fp16", "--floor", "-1"], 1),
            (["--precision", "fp16", "--calibration-percentile", "99.9"], 1),
            (["--precision", "fp8", "--calibration-percentile", "3"], 1),
            (["--precision", "fp8", "--calibration-prompts", "none.txt"], 1),
            (["--reference", "none"], 1),
            (["--opset", "17"], 1),
            (["--opset", "new"], 2),
        ],
    )
    def test_exit_codes(self, options: list[str], code: int, tiny_source: Path, tmp_path: Path) -> None:
        result = CliRunner().invoke(main, ["export", str(tiny_source), str(tmp_path / "bundle"), *options])
        assert result.exit_code == code
        assert leftovers(tmp_path) == []

    def test_a_source_that_is_not_there(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(main, ["export", str(tmp_path / "none"), str(tmp_path / "bundle")])
        assert result.exit_code == 1
        assert (
            "does not exist; expected a folder in diffusers' layout, a .safetensors file or a hub id" in result.stderr
        )
        assert leftovers(tmp_path) == []
