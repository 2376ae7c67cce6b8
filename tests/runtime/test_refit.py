"""Refitted bundles: the frames of a loaded LoRA, the bytes of an export, and nothing else changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from lora_files import factors, write_lora
from safetensors.torch import load_file, save_file

import telecine
from telecine import refit as module
from telecine.bundle import Bundle, sha256
from telecine.cli import main
from telecine.errors import BundleError, RequestError, SourceError
from telecine.inspection import as_text
from telecine.lora import Lora
from telecine.refit import refitted_bundle

SMALL: dict[str, Any] = {
    "prompt": "a red ball", "height": 64, "width": 32, "num_frames": 9, "num_inference_steps": 2, "seed": 0,
    "guidance_scale": 1.0,
}  # fmt: skip


@pytest.fixture
def lora(tiny_bundle: Path, tmp_path: Path) -> Path:
    return write_lora(tmp_path / "style.safetensors", factors(tiny_bundle))


@pytest.fixture
def tuned(tiny_source: Path, tmp_path: Path) -> Path:
    """The text encoder, a little other."""
    (file,) = (tiny_source / "text_encoder").glob("*.safetensors")
    save_file({name: tensor * 1.1 for name, tensor in load_file(file).items()}, tmp_path / "tuned.safetensors")
    return tmp_path / "tuned.safetensors"


def refit(bundle: Path, out: Path, *loras: Lora, **options: Any) -> Bundle:
    with refitted_bundle(Bundle.open(bundle), out, loras=loras, weights={}, **options):
        pass
    return Bundle.open(out)


def test_frames_are_those_of_the_files_loaded(tiny_bundle: Path, lora: Path, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with refitted_bundle(
        Bundle.open(tiny_bundle), out, loras=[Lora(file=lora, scale=0.6)], weights={"text_encoder": tuned}
    ):
        assert not out.exists()
    with telecine.load(tiny_bundle) as pipe, telecine.load(out) as refitted:
        base = pipe.generate(**SMALL).frames
        pipe.load_lora((lora, 0.6))
        pipe.load_weights("text_encoder", tuned)
        expected = pipe.generate(**SMALL).frames
        np.testing.assert_array_equal(refitted.generate(**SMALL).frames, expected)
        assert np.abs(expected - base).max() > 0.01


def test_what_it_says_and_keeps(tiny_bundle: Path, lora: Path, tmp_path: Path) -> None:
    first = refit(tiny_bundle, tmp_path / "first", Lora(file=lora, scale=0.6))
    before, after = Bundle.open(tiny_bundle).manifest, first.manifest
    first.check_weights()
    line = f"lora style.safetensors times 0.6 sha256 {sha256(lora)}"
    assert after.components["transformer"].refitted == (line,)
    assert f"  refitted: {line}\n" in as_text(first, weights_checked=False)
    for name, component in before.components.items():
        assert after.components[name].graphs == component.graphs
        if name != "transformer":
            assert after.components[name] == component
            # onnx refuses weights that have several names, in the bundle that they were linked from too.
            assert (tiny_bundle / name / "weights.bin").stat().st_nlink == 1
    assert after.components["transformer"].weights.sha256 != before.components["transformer"].weights.sha256
    assert after.components["transformer"].weights.size == before.components["transformer"].weights.size
    Bundle.open(tiny_bundle).check_weights()
    second = refit(first.root, tmp_path / "second", Lora(file=lora, scale=-0.6))
    assert second.manifest.components["transformer"].refitted == (line, line.replace("0.6", "-0.6"))


def test_a_b_and_a_again_from_one_bundle(tiny_bundle: Path, lora: Path, tmp_path: Path) -> None:
    other = write_lora(tmp_path / "other.safetensors", factors(tiny_bundle, seed=9))
    hashes = [
        refit(tiny_bundle, tmp_path / "out", Lora(file=file), overwrite=True).component("transformer").weights.sha256
        for file in (lora, other, lora)
    ]
    assert hashes[0] == hashes[2] != hashes[1]


class TestRefused:
    """And nothing is there after."""

    @pytest.fixture
    def out(self, tmp_path: Path) -> Path:
        return tmp_path / "somewhere" / "out"

    def refused(self, error: type[Exception], problem: str, call: Callable[[], object], out: Path) -> None:
        with pytest.raises(error, match=problem):
            call()
        assert not out.exists()
        assert not out.parent.exists() or list(out.parent.iterdir()) == []

    def test_nothing_to_do(self, tiny_bundle: Path, out: Path) -> None:
        self.refused(RequestError, "no LoRA and no weights", lambda: refit(tiny_bundle, out), out)

    def test_a_lora_of_another_model(self, tiny_bundle: Path, lora: Path, tmp_path: Path, out: Path) -> None:
        pairs = factors(tiny_bundle)
        file = write_lora(tmp_path / "x.safetensors", {"no.such": pairs["proj_in"]})
        self.refused(SourceError, "match no weight", lambda: refit(tiny_bundle, out, Lora(file=file)), out)

    def test_an_unknown_component(self, tiny_bundle: Path, tuned: Path, out: Path) -> None:
        def call() -> None:
            with refitted_bundle(Bundle.open(tiny_bundle), out, weights={"unet": tuned}):
                pass

        self.refused(BundleError, "has no unet", call, out)

    def test_damaged_weights(self, tiny_bundle: Path, lora: Path, tmp_path: Path, out: Path) -> None:
        copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
        with (copy / "vae_encoder" / "weights.bin").open("r+b") as file:
            file.write(b"damage")
        self.refused(BundleError, "weights.bin has changed", lambda: refit(copy, out, Lora(file=lora)), out)

    def test_a_full_disk(self, tiny_bundle: Path, lora: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module, "file_entry", fail)
        self.refused(RequestError, "No space left", lambda: refit(tiny_bundle, out, Lora(file=lora)), out)

    def test_a_bundle_that_is_there(self, tiny_bundle: Path, lora: Path, tmp_path: Path) -> None:
        refit(tiny_bundle, tmp_path / "out", Lora(file=lora))
        with pytest.raises(RequestError, match="exists and is not empty"):
            refit(tiny_bundle, tmp_path / "out", Lora(file=lora))


class TestCommand:
    def run(self, *arguments: object) -> Any:
        return CliRunner().invoke(main, ["refit", *map(str, arguments)])

    def test_it_writes_a_bundle(self, tiny_bundle: Path, lora: Path, tuned: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        done = self.run(tiny_bundle, out, "--lora", f"{lora}=0.5", "--weights", f"text_encoder={tuned}", "--json")
        assert done.exit_code == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["bundle"], told["plans"], set(told["refitted"])) == (str(out), {}, {"transformer", "text_encoder"})
        assert told["refitted"]["transformer"][0].startswith("lora style.safetensors times 0.5 sha256 ")
        assert told["refitted"]["text_encoder"] == [f"weights tuned.safetensors sha256 {sha256(tuned)}"]
        Bundle.open(out).check_weights()

    def test_refusals(self, tiny_bundle: Path, tmp_path: Path) -> None:
        assert self.run(tiny_bundle, tmp_path / "out").exit_code == 1
        assert self.run(tiny_bundle, tmp_path / "out", "--weights", "transformer").exit_code == 2
        done = self.run(tiny_bundle, tmp_path / "out", "--lora", "nowhere.safetensors")
        assert (done.exit_code, "nowhere.safetensors does not exist" in done.stderr) == (1, True)

    def test_generate_takes_loras(self, tiny_bundle: Path, lora: Path, tmp_path: Path) -> None:
        common = [
            "generate", str(tiny_bundle), "--prompt", "a", "--height", "64", "--width", "32", "--num-frames", "9",
            "--num-inference-steps", "2", "--seed", "0", "--output-type", "latent",
        ]  # fmt: skip
        made = []
        for index, loras in enumerate([[], ["--lora", f"{lora}=0"], ["--lora", str(lora), "--lora", f"{lora}=-0.5"]]):
            output = tmp_path / f"{index}.safetensors"
            done = CliRunner().invoke(main, [*common, *loras, "-o", str(output)])
            assert done.exit_code == 0, done.stderr
            made.append(load_file(output)["latents"].numpy())
        np.testing.assert_array_equal(made[0], made[1])
        assert np.abs(made[2] - made[0]).max() > 0.01
