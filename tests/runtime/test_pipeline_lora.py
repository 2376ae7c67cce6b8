"""`load_lora`, `load_weights` and back: frames, bits, clones, and what is refused before anything changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from lora_files import LAYERS, deltas, factors, write_lora
from safetensors.torch import load_file, save_file

import telecine
from telecine.backends.onnxruntime import OnnxRuntimeSession
from telecine.bundle import Bundle
from telecine.errors import BackendError, BundleError, RequestError, SourceError
from telecine.graph_weights import GraphWeights
from telecine.lora import Lora
from telecine.pipeline import Pipeline
from telecine.rope import grid_index, make_tables, video_positions
from telecine.shapes import Grid, LatentShape
from telecine.weight_changes import WeightChanges

SMALL: dict[str, Any] = {
    "prompt": "a red ball", "height": 64, "width": 32, "num_frames": 9, "num_inference_steps": 2, "seed": 0,
    "guidance_scale": 1.0,
}  # fmt: skip


@pytest.fixture
def pipe(tiny_bundle: Path) -> Iterator[Pipeline]:
    with telecine.load(tiny_bundle) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def files(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two LoRA files."""
    folder = tmp_path_factory.mktemp("loras")
    return tuple(
        write_lora(folder / f"{seed}.safetensors", factors(tiny_bundle, seed=seed, rank=seed + 2)) for seed in (0, 1)
    )  # type: ignore[return-value]


def frames(pipe: Pipeline) -> np.ndarray:
    made = pipe.generate(**SMALL).frames
    assert made is not None
    return made


def differ(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(np.abs(first - second).max() > 0.01)


def test_a_then_b_then_a_and_back(pipe: Pipeline, files: tuple[Path, Path]) -> None:
    a, b = files
    base = frames(pipe)
    pipe.load_lora(a)
    with_a = frames(pipe)
    assert differ(with_a, base)
    pipe.load_lora([(b, 0.5), a])
    assert pipe.loras == (Lora(file=b, scale=0.5), Lora(file=a))
    assert differ(frames(pipe), with_a)
    pipe.load_lora(str(a))
    np.testing.assert_array_equal(frames(pipe), with_a)
    pipe.unload_lora()
    assert pipe.loras == ()
    np.testing.assert_array_equal(frames(pipe), base)


def test_a_network_that_loads_later_has_the_lora(tiny_bundle: Path, pipe: Pipeline, files: tuple[Path, Path]) -> None:
    frames(pipe)
    pipe.load_lora(files[0])
    with telecine.load(tiny_bundle) as fresh:
        fresh.load_lora(files[0])
        np.testing.assert_array_equal(frames(fresh), frames(pipe))


def test_a_lora_is_the_same_model_in_diffusers(
    tiny_bundle: Path, tiny_source: Path, pipe: Pipeline, tmp_path: Path
) -> None:
    """One call of the transformer, with the factors added to torch's weights: DESIGN's bound for one call, 1e-5."""
    pairs = factors(tiny_bundle, seed=5)
    pipe.load_lora((write_lora(tmp_path / "a.safetensors", pairs), 0.7))
    module = LTXVideoTransformer3DModel.from_pretrained(tiny_source / "transformer").eval()
    with torch.no_grad():
        for layer, delta in deltas(pairs, 0.7).items():
            module.get_submodule(layer).weight += torch.from_numpy(delta.astype(np.float32))
    shape, length = LatentShape(frames=2, height=2, width=3), 4
    torch.manual_seed(0)
    hidden, text = torch.randn(2, 12, 16), torch.randn(2, length, 32)
    with torch.no_grad():
        (expected,) = module(
            hidden_states=hidden, encoder_hidden_states=text, encoder_attention_mask=torch.ones(2, length),
            timestep=torch.full((2,), 500.0), num_frames=2, height=2, width=3,
            rope_interpolation_scale=(8 / 25, 32, 32), return_dict=False,
        )  # fmt: skip
    host = pipe.bundle.manifest.host
    frequencies = np.array(host["rope_frequencies"], np.float32)
    grid = Grid(spatial=host["spatial_ratio"], temporal=host["temporal_ratio"])
    tables = make_tables(video_positions(shape, grid, 25), grid_index(shape), frequencies)
    feeds = {
        "hidden_states": hidden.numpy(),
        "encoder_hidden_states": text.numpy(),
        "encoder_attention_mask": np.ones((2, length), np.float32),
        "timestep": np.full((2, 1), 500, np.float32),
        "rope_cos": tables.cos,
        "rope_sin": tables.sin,
        "rope_index": tables.index,
        "stg_mode": np.zeros((host["transformer_blocks"], 2), np.int32),
    }
    got = pipe._models.session("transformer").run(feeds)["velocity"]
    np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=1e-5)
    pipe.unload_lora()
    assert differ(pipe._models.session("transformer").run(feeds)["velocity"], got)


class TestWeights:
    @pytest.mark.parametrize("component", ["text_encoder", "transformer", "vae_decoder"])
    def test_a_fine_tune_and_back(
        self, component: str, pipe: Pipeline, tiny_source: Path, tmp_path: Path, layouts_of: Callable[..., Any]
    ) -> None:
        base = frames(pipe)
        folder = tiny_source / ("vae" if component == "vae_decoder" else component)
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        pipe.load_weights(component, folder)
        np.testing.assert_array_equal(frames(pipe), base)
        torch.manual_seed(0)
        tuned = {
            name: tensor if name.startswith("latents_") else tensor * (1 + 0.2 * torch.rand(tensor.shape))
            for name, tensor in tensors.items()
        }
        save_file(tuned, tmp_path / "tuned.safetensors")
        pipe.load_weights(component, str(tmp_path / "tuned.safetensors"))
        changed = frames(pipe)
        assert differ(changed, base)
        save_file({layouts_of(component)(name): tensor for name, tensor in tuned.items()}, tmp_path / "old.safetensors")
        pipe.load_weights(component, tmp_path / "old.safetensors")
        np.testing.assert_array_equal(frames(pipe), changed)
        pipe.unload_weights(component)
        np.testing.assert_array_equal(frames(pipe), base)

    def test_a_lora_stays_over_a_fine_tune(
        self, pipe: Pipeline, tiny_source: Path, files: tuple[Path, Path], tmp_path: Path
    ) -> None:
        (file,) = (tiny_source / "transformer").glob("*.safetensors")
        save_file({name: tensor * 0.9 for name, tensor in load_file(file).items()}, tmp_path / "tuned.safetensors")
        pipe.load_lora(files[0])
        with_lora = frames(pipe)
        pipe.load_weights("transformer", tmp_path / "tuned.safetensors")
        both = frames(pipe)
        assert differ(both, with_lora)
        pipe.unload_lora()
        tuned = frames(pipe)
        assert differ(tuned, both)
        pipe.load_lora(files[0])
        np.testing.assert_array_equal(frames(pipe), both)
        pipe.unload_weights("transformer")
        np.testing.assert_array_equal(frames(pipe), with_lora)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda tensors: tensors.pop("proj_in.weight"), "holds no transformer; expected its weights, by"),
            (lambda tensors: tensors.pop("proj_out.weight"), "has no proj_out.weight; expected every weight"),
            (lambda tensors: tensors.update({"proj_in.bias": torch.zeros(65)}), r"proj_in.bias of shape \[65\]"),
            (
                lambda tensors: tensors.update({"proj_in.weight": torch.zeros(64, 16, dtype=torch.int8)}),
                "has proj_in.weight as I8; expected unquantised",
            ),
        ],
    )
    def test_other_models_are_refused(
        self, change: Callable[[dict[str, torch.Tensor]], object], problem: str, pipe: Pipeline, tiny_source: Path,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        (file,) = (tiny_source / "transformer").glob("*.safetensors")
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(SourceError, match=problem):
            pipe.load_weights("transformer", tmp_path / "x.safetensors")

    def test_a_vae_of_other_statistics_is_refused(self, pipe: Pipeline, tiny_source: Path, tmp_path: Path) -> None:
        (file,) = (tiny_source / "vae").glob("*.safetensors")
        tensors = load_file(file)
        tensors["latents_std"] = tensors["latents_std"] * 2
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(SourceError, match="has another latents_std"):
            pipe.load_weights("vae_decoder", tmp_path / "x.safetensors")

    def test_an_unknown_component(self, pipe: Pipeline, tiny_source: Path) -> None:
        for call in (lambda: pipe.load_weights("vae", tiny_source / "vae"), lambda: pipe.unload_weights("vae")):
            with pytest.raises(BundleError, match="has no vae; expected one of its components"):
                call()


@pytest.fixture
def layouts_of() -> Callable[[str], Callable[[str], str]]:
    """The names of an original file, where there is another layout."""

    def original(name: str) -> str:
        for ours, theirs in {"proj_in.": "patchify_proj.", "time_embed.": "adaln_single.", "norm_q": "q_norm"}.items():
            name = name.replace(ours, theirs)
        return f"model.diffusion_model.{name.replace('norm_k', 'k_norm')}"

    tied = {"shared.weight": "encoder.embed_tokens.weight", "encoder.embed_tokens.weight": "shared.weight"}
    return lambda component: {
        "transformer": original, "text_encoder": lambda name: tied.get(name, name)
    }.get(component, lambda name: name)  # fmt: skip


class TestRefused:
    """Nothing has changed after."""

    @pytest.fixture(autouse=True)
    def unchanged(self, pipe: Pipeline, files: tuple[Path, Path]) -> Iterator[None]:
        pipe.load_lora(files[0])
        before, loras = frames(pipe), pipe.loras
        yield
        assert pipe.loras == loras
        np.testing.assert_array_equal(frames(pipe), before)

    def test_a_lora_of_another_model(
        self, pipe: Pipeline, tiny_bundle: Path, files: tuple[Path, Path], tmp_path: Path
    ) -> None:
        pairs = factors(tiny_bundle)
        down, up = pairs["proj_in"]
        pairs["proj_in"] = down[:, :-1], up
        with pytest.raises(SourceError, match=r"and \(rank, 16\), as proj_in.weight"):
            pipe.load_lora([files[1], write_lora(tmp_path / "a.safetensors", pairs)])

    def test_a_backend_that_fails(
        self, pipe: Pipeline, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(self: OnnxRuntimeSession, weights: object) -> None:
            raise BackendError("out of memory", expected="memory", fix="Free some.")

        with monkeypatch.context() as patch:
            patch.setattr(OnnxRuntimeSession, "replace", fail)
            with pytest.raises(BackendError, match="out of memory"):
                pipe.load_lora(files[1])

    def test_a_second_network_that_fails(
        self, pipe: Pipeline, files: tuple[Path, Path], tiny_source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first, which had taken its new weights, gets the old ones back."""
        replace, calls = OnnxRuntimeSession.replace, []

        def fail_second(self: OnnxRuntimeSession, weights: Any) -> None:
            calls.append(sorted(weights))
            if len(calls) == 2:
                raise BackendError("out of memory", expected="memory", fix="Free some.")
            replace(self, weights)

        def both(changes: WeightChanges) -> WeightChanges:
            unloaded = changes.with_loras(pipe.bundle, ())
            return unloaded.with_tune(pipe.bundle, "vae_decoder", tiny_source / "vae")

        with monkeypatch.context() as patch:
            patch.setattr(OnnxRuntimeSession, "replace", fail_second)
            with pytest.raises(BackendError, match="out of memory"):
                pipe._models.change_weights(both)
        assert (calls[0], calls[2]) == ([], sorted(f"{layer}.weight" for layer in LAYERS))
        assert "decoder.conv_in.conv.weight" in calls[1]

    def test_while_a_clone_generates(self, pipe: Pipeline, files: tuple[Path, Path]) -> None:
        with pipe.clone() as clone:
            for changing in (lambda: pipe.load_lora(files[1]), pipe.unload_lora, lambda: clone.load_lora(files[1])):
                problems: list[str] = []

                def callback(*_: object, changing: Callable[[], None] = changing, told: list[str] = problems) -> None:
                    with pytest.raises(RequestError, match="a clone is running a request; expected none") as error:
                        changing()
                    told.append(error.value.got)

                clone.generate(**SMALL, callback=callback)
                assert len(problems) == 2


class TestClones:
    def test_they_share_the_lora(self, pipe: Pipeline, files: tuple[Path, Path]) -> None:
        with pipe.clone() as clone:
            base = frames(clone)
            clone.load_lora(files[0])
            with_lora = frames(pipe)
            assert differ(with_lora, base)
            np.testing.assert_array_equal(frames(clone), with_lora)
            with pipe.clone() as later:
                np.testing.assert_array_equal(frames(later), with_lora)
                assert later.loras == pipe.loras == (Lora(file=files[0]),)
            clone.unload_lora()
            np.testing.assert_array_equal(frames(pipe), base)

    def test_the_last_of_them_still_has_it(self, tiny_bundle: Path, files: tuple[Path, Path]) -> None:
        """The networks of the others are gone, and load again."""
        with telecine.load(tiny_bundle) as first:
            first.load_lora(files[0])
            expected, last = frames(first), first.clone()
        with last:
            np.testing.assert_array_equal(frames(last), expected)

    def test_a_request_that_begins_meanwhile_waits(
        self, pipe: Pipeline, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = frames(pipe)
        pipe.load_lora(files[0])
        expected = frames(pipe)
        pipe.unload_lora()
        begun, go_on = threading.Event(), threading.Event()
        replace = OnnxRuntimeSession.replace

        def slow(self: OnnxRuntimeSession, weights: Any) -> None:
            begun.set()
            assert go_on.wait(60)
            replace(self, weights)

        monkeypatch.setattr(OnnxRuntimeSession, "replace", slow)
        made: list[np.ndarray] = []
        with pipe.clone() as clone:
            loading = threading.Thread(target=pipe.load_lora, args=(files[0],))
            generating = threading.Thread(target=lambda: made.append(frames(clone)))
            loading.start()
            assert begun.wait(60)
            generating.start()
            generating.join(0.2)
            assert not made
            go_on.set()
            for thread in (loading, generating):
                thread.join(60)
        np.testing.assert_array_equal(made[0], expected)
        assert differ(expected, base)


def test_a_closed_pipeline(tiny_bundle: Path, files: tuple[Path, Path]) -> None:
    with telecine.load(tiny_bundle) as pipe:
        pass
    with pytest.raises(RequestError, match="this pipeline is closed"):
        pipe.load_lora(files[0])


def test_the_graph_gets_what_the_files_say_and_no_more(
    pipe: Pipeline, files: tuple[Path, Path], tiny_bundle: Path
) -> None:
    pipe.load_lora(files[0])
    values = pipe._models.changes.values(pipe.bundle, "transformer", "main")
    weights = GraphWeights.open(Bundle.open(tiny_bundle), "transformer")
    pairs = factors(tiny_bundle, seed=0, rank=2)
    assert set(values) == {f"{layer}.weight" for layer in pairs}
    for layer, (down, up) in pairs.items():
        name = f"{layer}.weight"
        stored = values[name].T if weights.initializer(name).transposed else values[name]
        np.testing.assert_array_equal(stored, weights.load(name) + up @ down)
