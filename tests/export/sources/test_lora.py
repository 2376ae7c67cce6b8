"""Fused LoRA files against W + scale · alpha / rank · up @ down, written out in the tests."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from telecine.bundle import Bundle
from telecine.cli import main
from telecine.errors import SourceError
from telecine.lora import Lora
from telecine.refit import refitted_bundle
from telecine_export.export import export_bundle
from telecine_export.source import Source, open_source, parse_lora

Tensors = dict[str, torch.Tensor]
Write = Callable[..., Path]
RANK = 3
LAYERS = ("proj_in", "time_embed.linear", "transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.2")
SPELLINGS = {
    "diffusers": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight"),
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
    "peft with an adapter's name": (
        "base_model.model.{}.lora_A.default.weight",
        "base_model.model.{}.lora_B.default.weight",
    ),
    "down and up": ("transformer.{}.lora_down.weight", "transformer.{}.lora_up.weight"),
    "down and up with dots": ("{}.lora.down.weight", "{}.lora.up.weight"),
    "original": ("diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight"),
    "original, down and up": ("model.diffusion_model.{}.lora_down.weight", "model.diffusion_model.{}.lora_up.weight"),
}


@pytest.fixture
def weights(tiny_source: Path) -> Iterator[Tensors]:
    with open_source(str(tiny_source)).checkpoint("transformer") as checkpoint:
        yield {name: checkpoint.load(name) for name in checkpoint.names()}


def factors(weights: Tensors, *, seed: int = 0, rank: int = RANK) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(down, up) of each layer of LAYERS."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {layer: weights[f"{layer}.weight"].shape for layer in LAYERS}
    return {
        layer: (torch.randn(rank, into, generator=generator), torch.randn(out, rank, generator=generator))
        for layer, (out, into) in shapes.items()
    }


def spelled(pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], spelling: str, layouts: Any) -> Tensors:
    names = {layer: layouts.transformer(f"{layer}.")[:-1] if "original" in spelling else layer for layer in pairs}
    down, up = SPELLINGS[spelling]
    return {down.format(names[layer]): pair[0] for layer, pair in pairs.items()} | {
        up.format(names[layer]): pair[1] for layer, pair in pairs.items()
    }


def assert_adds(source: Source, weights: Tensors, expected: dict[str, torch.Tensor]) -> None:
    """`source` has `weights`, plus `expected` by layer, in float32."""
    with source.checkpoint("transformer") as checkpoint:
        assert set(checkpoint.names()) == set(weights)
        for name, weight in weights.items():
            delta = expected.get(name.removesuffix(".weight"), torch.zeros(()))
            got = checkpoint.load(name)
            assert checkpoint.shape(name) == tuple(weight.shape)
            if name.removesuffix(".weight") in expected:
                # One float32 product of a few terms near 1, added in another order.
                torch.testing.assert_close(got, (weight.double() + delta.double()).float(), rtol=1e-6, atol=1e-5)
                assert (got - weight).abs().max() > 0.1
            else:
                assert torch.equal(got, weight)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_keys(
    spelling: str, weights: Tensors, layouts: Any, written: Write, tiny_source: Path
) -> None:
    pairs = factors(weights)
    file = written(spelled(pairs, spelling, layouts))
    source = open_source(str(tiny_source), loras=[f"{file}=0.7"])
    assert_adds(source, weights, {layer: 0.7 * up.double() @ down.double() for layer, (down, up) in pairs.items()})
    assert source.describe()[-1] == f"lora: {file} (times 0.7)"


def test_alpha_beside_the_factors(weights: Tensors, layouts: Any, written: Write, tiny_source: Path) -> None:
    pairs = factors(weights)
    alphas = {layer: float(index + 1) for index, layer in enumerate(LAYERS)}
    tensors = spelled(pairs, "down and up", layouts)
    tensors |= {f"transformer.{layer}.alpha": torch.tensor(alpha) for layer, alpha in alphas.items()}
    source = open_source(str(tiny_source), loras=[str(written(tensors))])
    expected = {layer: alphas[layer] / RANK * up @ down for layer, (down, up) in pairs.items()}
    assert_adds(source, weights, expected)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("stabilised", [False, True])
def test_peft_s_settings(
    beside: bool, stabilised: bool, weights: Tensors, layouts: Any, written: Write, tiny_source: Path
) -> None:
    """Inside the file, as diffusers saves them, or in adapter_config.json, as PEFT does."""
    settings = {"r": RANK, "lora_alpha": 6, "alpha_pattern": {"to_q": 12, "net.2": 1}, "use_rslora": stabilised}
    pairs = factors(weights)
    if beside:
        file = written(spelled(pairs, "peft", layouts))
        (file.parent / "adapter_config.json").write_text(json.dumps(settings))
    else:
        stored = json.dumps({f"transformer.{key}": value for key, value in settings.items()})
        file = written(spelled(pairs, "diffusers", layouts), lora_adapter_metadata=stored)
    alphas = {"proj_in": 6, "time_embed.linear": 6, LAYERS[2]: 12, LAYERS[3]: 1}
    divisor = math.sqrt(RANK) if stabilised else RANK
    expected = {layer: alphas[layer] / divisor * up @ down for layer, (down, up) in pairs.items()}
    assert_adds(open_source(str(tiny_source), loras=[str(file)]), weights, expected)


def test_several_files_add_up_over_any_source(
    weights: Tensors, layouts: Any, written: Write, tiny_source: Path, original_file: Path, tiny_release: Any
) -> None:
    first, second = factors(weights), factors(weights, seed=1, rank=5)
    files = [
        written(spelled(first, "diffusers", layouts), "first.safetensors"),
        written(spelled(second, "original", layouts), "second.safetensors"),
    ]
    loras = [f"{files[0]}=-0.5", str(files[1])]
    source = open_source(str(original_file), text_encoder=str(tiny_source), loras=loras)
    expected = {
        layer: second[layer][1] @ second[layer][0] - 0.5 * first[layer][1] @ first[layer][0] for layer in LAYERS
    }
    assert_adds(source, weights, expected)


def test_half_precision_is_fused_in_float32(layouts: Any, written: Write, tiny_source: Path, tmp_path: Path) -> None:
    base = open_source(str(tiny_source))
    with base.checkpoint("transformer") as checkpoint:
        halves = {name: checkpoint.load(name).bfloat16() for name in checkpoint.names()}
    save_file(halves, tmp_path / "half.safetensors")
    pairs = {layer: (down / 64, up / 64) for layer, (down, up) in factors(halves).items()}
    file = written(spelled(pairs, "diffusers", layouts))
    source = open_source(str(tiny_source), transformer=str(tmp_path / "half.safetensors"), loras=[str(file)])
    with source.checkpoint("transformer") as checkpoint:
        got = checkpoint.load("proj_in.weight")
    down, up = pairs["proj_in"]
    torch.testing.assert_close(got, halves["proj_in.weight"].float() + up @ down, rtol=1e-6, atol=1e-7)
    assert not torch.equal(got, got.bfloat16().float())


def test_an_export_has_the_bytes_of_a_refitted_bundle(
    weights: Tensors, layouts: Any, written: Write, tiny_source: Path, tiny_bundle: Path, tmp_path: Path,
    traced_before: None,
) -> None:  # fmt: skip
    """At fp32: one formula, in one order, whenever the files are fused."""
    files = [
        written(spelled(factors(weights, seed=seed, rank=seed + 3), "diffusers", layouts), f"{seed}.safetensors")
        for seed in range(2)
    ]
    loras = [Lora(file=files[0], scale=0.7), Lora(file=files[1], scale=-0.3)]
    source = open_source(str(tiny_source), loras=[f"{lora.file}={lora.scale}" for lora in loras])
    exported = export_bundle(source, tmp_path / "exported")
    with refitted_bundle(Bundle.open(tiny_bundle), tmp_path / "refitted", loras=loras, weights={}) as refitted:
        for name, component in exported.manifest.components.items():
            assert component.weights == refitted.component(name).weights
    assert exported.component("transformer").weights != Bundle.open(tiny_bundle).component("transformer").weights


class TestRefused:
    @pytest.fixture
    def tensors(self, weights: Tensors, layouts: Any) -> Tensors:
        return spelled(factors(weights), "diffusers", layouts)

    def refused(self, file: Path, tiny_source: Path, problem: str) -> None:
        with pytest.raises(SourceError, match=problem):
            open_source(str(tiny_source), loras=[str(file)]).checkpoint("transformer")

    @pytest.mark.parametrize(
        "key",
        [
            "transformer.transformer_blocks.9.attn1.to_q.lora_A.weight",
            "text_encoder.encoder.block.0.lora_A.weight",
            "transformer.proj_in.lora_magnitude_vector",
            "transformer.proj_in.diff_b",
            "transformer.proj_in.lora_B.bias",
        ],
    )
    def test_keys_that_match_nothing_are_listed(
        self, key: str, tensors: Tensors, written: Write, tiny_source: Path
    ) -> None:
        file = written(tensors | {key: torch.zeros(3, 64)})
        self.refused(file, tiny_source, f"1 tensors that match no weight of .*transformer: {key}; expected low-rank")

    def test_many_are_counted(self, written: Write, tiny_source: Path) -> None:
        file = written({f"lora_unet_{index}.lora_down.weight": torch.zeros(1, 1) for index in range(9)})
        self.refused(file, tiny_source, r"9 tensors that match .*lora_unet_4\.lora_down\.weight, \.\.\.; expected")

    def test_an_empty_file(self, written: Write, tiny_source: Path) -> None:
        self.refused(written({}), tiny_source, "it is empty")

    @pytest.mark.parametrize("half", ["lora_A", "lora_B"])
    def test_half_a_pair(self, half: str, tensors: Tensors, written: Write, tiny_source: Path) -> None:
        del tensors[f"transformer.proj_in.{half}.weight"]
        self.refused(written(tensors), tiny_source, r"half a pair: transformer\.proj_in\.lora_")

    @pytest.mark.parametrize(
        ("down", "up"), [((3, 16), (64, 4)), ((3, 17), (64, 3)), ((3, 16), (65, 3)), ((3, 16, 1, 1), (64, 3))]
    )
    def test_factors_of_another_shape(
        self, down: tuple[int, ...], up: tuple[int, ...], tensors: Tensors, written: Write, tiny_source: Path
    ) -> None:
        tensors["transformer.proj_in.lora_A.weight"] = torch.zeros(down)
        tensors["transformer.proj_in.lora_B.weight"] = torch.zeros(up)
        expected = r"expected \(64, rank\) and \(rank, 16\), as proj_in\.weight is \[64, 16\]"
        self.refused(written(tensors), tiny_source, expected)

    @pytest.mark.parametrize(
        ("metadata", "problem"),
        [("{", "unreadable lora_adapter"), ("[]", "unreadable"), ('{"transformer.use_dora": true}', "DoRA")],
    )
    def test_settings(self, metadata: str, problem: str, tensors: Tensors, written: Write, tiny_source: Path) -> None:
        self.refused(written(tensors, lora_adapter_metadata=metadata), tiny_source, problem)

    def test_no_file(self, tiny_source: Path) -> None:
        with pytest.raises(SourceError, match="nowhere.safetensors does not exist; expected a LoRA file"):
            open_source(str(tiny_source), loras=["nowhere.safetensors=0.5"])

    def test_on_the_command_line(self, tiny_source: Path, tmp_path: Path) -> None:
        arguments = ["export", str(tiny_source), str(tmp_path / "bundle"), "--lora", "nowhere.safetensors"]
        done = CliRunner().invoke(main, arguments)
        assert (done.exit_code, (tmp_path / "bundle").exists()) == (1, False)
        assert "nowhere.safetensors does not exist; expected a LoRA file" in done.stderr

    @pytest.mark.parametrize("scale", ["inf", "nan", "-inf", "1e9"])
    def test_scales(self, scale: str, written: Write) -> None:
        with pytest.raises(SourceError, match="expected a finite scale"):
            parse_lora(f"{written({})}={scale}")


def test_a_path_with_an_equals_sign(written: Write) -> None:
    file = written({}, "rank=8.safetensors")
    assert parse_lora(str(file)) == Lora(file=file, scale=1.0)
    assert parse_lora(f"{file}=0.25") == Lora(file=file, scale=0.25)
    assert parse_lora(str(file.parent)) == Lora(file=file, scale=1.0)  # the one file of a folder
