"""bitsandbytes' and float8 weights, quantised here by their papers' formulas and undone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from telecine.errors import SourceError
from telecine_export.checkpoints.checkpoint import Checkpoint
from telecine_export.components import open_file
from telecine_export.source import open_source

Tensors = dict[str, torch.Tensor]
Write = Callable[..., Path]
# QLoRA's quantiles of a normal distribution, rounded: what matters is that each code has its own value.
CODES = torch.tensor([-1.0, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1])


def eight_bit(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = weight.abs().amax(dim=1)
    return torch.round(weight / scales[:, None] * 127).to(torch.int8), scales


def four_bit(name: str, weight: torch.Tensor, *, block: int, nested: bool) -> tuple[Tensors, torch.Tensor]:
    """The tensors of one weight, and what a loop over its elements makes of them."""
    flat = weight.flatten()
    magnitudes = torch.stack([piece.abs().max() for piece in flat.split(block)])
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": block, "dtype": "float32", "shape": list(weight.shape)}
    tensors: Tensors = {f"{name}.absmax": magnitudes, f"{name}.quant_map": CODES}
    if nested:
        outer_block, offset = 4, float(magnitudes.mean())
        outer = torch.stack([piece.abs().max() for piece in (magnitudes - offset).split(outer_block)])
        outer_codes = torch.linspace(-1, 1, 256)
        ratios = (magnitudes - offset) / outer.repeat_interleave(outer_block)[: len(magnitudes)]
        codes = (ratios[:, None] - outer_codes).abs().argmin(dim=1)
        magnitudes = torch.stack([outer_codes[c] * outer[i // outer_block] + offset for i, c in enumerate(codes)])
        tensors |= {
            f"{name}.absmax": codes.to(torch.uint8),
            f"{name}.nested_absmax": outer,
            f"{name}.nested_quant_map": outer_codes,
        }
        state |= {"nested_blocksize": outer_block, "nested_dtype": "float32", "nested_offset": offset}
    spread = magnitudes.repeat_interleave(block)[: len(flat)]
    codes = (flat[:, None] / spread[:, None] - CODES).abs().argmin(dim=1).to(torch.uint8)
    even = torch.cat([codes, codes.new_zeros(len(codes) % 2)])
    tensors[name] = (even[::2] << 4 | even[1::2])[:, None]
    tensors[f"{name}.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    expected = torch.tensor([float(CODES[c]) * float(m) for c, m in zip(codes.tolist(), spread.tolist(), strict=True)])
    return tensors, expected.reshape(weight.shape)


def is_linear(name: str, tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and name.endswith(".weight") and "shared" not in name and "embed" not in name


@pytest.fixture
def quantised_source(tiny_source: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint as `load_in_8bit` and save_pretrained leave it: transformer and T5 in 8 bits."""
    copy = tmp_path / "quantised"
    shutil.copytree(tiny_source, copy)
    for component in ("transformer", "text_encoder"):
        (file,) = (copy / component).glob("*.safetensors")
        tensors: Tensors = {}
        for name, weight in load_file(file).items():
            if is_linear(name, weight):
                layer = name.removesuffix("weight")
                tensors[name], tensors[f"{layer}SCB"] = eight_bit(weight)
                tensors[f"{layer}weight_format"] = torch.tensor(0, dtype=torch.uint8)
            else:
                tensors[name] = weight.half()
        save_file(tensors, file)
        config = json.loads((copy / component / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        (copy / component / "config.json").write_text(json.dumps(config))
    return copy


def test_an_8_bit_checkpoint_is_the_model_within_half_a_step(quantised_source: Path, tiny_source: Path) -> None:
    source, plain = open_source(str(quantised_source)), open_source(str(tiny_source))
    assert source.config("transformer") == plain.config("transformer")
    assert "I8" in source.describe()[1]
    seen = 0
    for component in ("transformer", "text_encoder"):
        with source.checkpoint(component) as ours, plain.checkpoint(component) as theirs:
            for name in theirs.names():
                got, weight = ours.load(name).float(), theirs.load(name)
                assert ours.shape(name) == tuple(weight.shape)
                if is_linear(name, weight):
                    seen += 1
                    codes, scales = (values.numpy() for values in eight_bit(weight))
                    np.testing.assert_allclose(got.numpy(), codes * scales[:, None] / 127, rtol=3e-7)
                    assert ((got - weight).abs() <= torch.from_numpy(scales)[:, None] * (0.5 / 127 + 1e-6)).all()
                else:
                    assert torch.equal(got, weight.half().float())
    assert seen > 30


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("shape", "block"), [((6, 64), 64), ((5, 7), 8), ((3, 16), 64)])
def test_4_bit_weights_are_what_a_loop_makes_of_them(
    shape: tuple[int, int], block: int, nested: bool, written: Write
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    tensors, expected = four_bit("a.weight", weight, block=block, nested=nested)
    with open_file(written(tensors)) as checkpoint:
        assert checkpoint.shape("a.weight") == shape
        torch.testing.assert_close(checkpoint.load("a.weight"), expected, rtol=1e-6, atol=0)
    # Half the widest gap of codes, in parts of a block's largest magnitude; an 8-bit scale moves that a little.
    assert (expected - weight).abs().max() <= 0.16 * weight.abs().max()


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(
    ("scale_name", "scale"),
    [
        (None, None), ("weight_scale", torch.tensor(0.37)), ("scale_weight", torch.tensor([0.37])),
        ("weight_scale", torch.linspace(0.1, 2, 6)), ("weight_scale", torch.linspace(0.1, 2, 6)[:, None]),
    ],
)  # fmt: skip
def test_float8_weights_are_scaled(kind: Any, scale_name: str | None, scale: Any, written: Write) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4).to(kind)
    tensors = {
        "a.weight": weight,
        "a.bias": torch.zeros(6),
        "a.input_scale": torch.tensor(9.0),
        "ab.scale": torch.ones(3),
    }
    if scale_name:
        tensors[f"a.{scale_name}"] = scale
    factors = [1.0] * 6 if scale is None else (scale.flatten().tolist() * 6)[:6]
    with open_file(written(tensors)) as checkpoint:
        got = checkpoint.load("a.weight")
    expected = torch.stack([row.float() * factor for row, factor in zip(weight, factors, strict=True)])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def load(file: Path) -> torch.Tensor:
    checkpoint: Checkpoint
    with open_file(file) as checkpoint:
        return checkpoint.load("a.weight")


INT8 = torch.ones(4, 6, dtype=torch.int8)
FLOAT8 = torch.ones(4, 6).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"a.weight": INT8}, r"is int8, with no a\.SCB"),
        ({"a.weight": INT8, "a.SCB": torch.ones(6)}, r"int8 of shape \[4, 6\] with \[6\] scales"),
        ({"a.weight": INT8, "a.SCB": torch.ones(4), "a.weight_format": torch.tensor(2).to(torch.uint8)}, "in layout 2"),
        ({"a.weight": INT8.to(torch.uint8)}, "is uint8, with no quantisation state"),
        ({"a.weight": FLOAT8, "a.weight_scale": torch.ones(6)}, r"weight_scale .*has shape \[6\]"),
        ({"a.weight": FLOAT8, "a.weight_scale_inv": torch.tensor(1.0)}, "weight_scale_inv .*expected weight_scale or"),
    ],
)  # fmt: skip
def test_what_cannot_be_undone_is_refused(tensors: Tensors, problem: str, written: Write) -> None:
    with pytest.raises(SourceError, match=problem):
        load(written(tensors))


def test_4_bit_parts_that_do_not_fit(written: Write) -> None:
    tensors, _ = four_bit("a.weight", torch.randn(6, 64), block=64, nested=False)
    with pytest.raises(SourceError, match="384 codes and 5 scales for 384 weights by 64"):
        load(written(tensors | {"a.weight.absmax": torch.ones(5)}))
    with pytest.raises(SourceError, match=r"has no tensor a\.weight\.quant_map"):
        load(written({name: values for name, values in tensors.items() if "quant_map" not in name}))
    state = "a.weight.quant_state.bitsandbytes__nf4"
    with pytest.raises(SourceError, match="an unreadable quantisation state"):
        load(written(tensors | {state: tensors[state][:20].clone()}))


def test_other_quantisations_are_named(tiny_source: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_source, tmp_path / "copy")
    path = tmp_path / "copy" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(SourceError, match="transformer is quantised by torchao; expected bitsandbytes"):
        open_source(str(tmp_path / "copy")).config("transformer")
