"""What LoRA files add, against W + scale · alpha / rank · up @ down in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_files import LAYERS, deltas, factors, write_lora
from safetensors.numpy import save_file

from telecine.bundle import Bundle
from telecine.errors import SourceError
from telecine.families.ltx_video.names import transformer_name
from telecine.graph_weights import GraphWeights
from telecine.lora import Delta, Lora, fuse, read_deltas, resolve, split_scale

# One float32 product of a few terms near 1, added in another order.
CLOSE = {"rtol": 1e-6, "atol": 1e-5}


@pytest.fixture
def weights(tiny_bundle: Path) -> GraphWeights:
    return GraphWeights.open(Bundle.open(tiny_bundle), "transformer")


def assert_adds(weights: GraphWeights, loras: list[Lora], expected: dict[str, np.ndarray]) -> None:
    found = read_deltas(loras, weights, transformer_name)
    assert set(found) == {f"{layer}.weight" for layer in expected}
    for layer, delta in expected.items():
        base = weights.load(f"{layer}.weight")
        got = fuse(base, found[f"{layer}.weight"])
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, base + delta, **CLOSE)
        assert np.abs(got - base).max() > 0.01


KOHYA = {
    "diffusers' names": lambda layer: layer.replace(".", "_"),
    "original names": lambda layer: (
        layer.replace("proj_in", "patchify_proj").replace("time_embed", "adaln_single").replace(".", "_")
    ),
}


@pytest.mark.parametrize("spelling", KOHYA)
def test_kohya_s_names(spelling: str, weights: GraphWeights, tiny_bundle: Path, tmp_path: Path) -> None:
    pairs = factors(tiny_bundle)
    tensors = {}
    for layer, (down, up) in pairs.items():
        name = f"lora_unet_{KOHYA[spelling](layer)}"
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = np.array(2.0, np.float32)
    save_file(tensors, tmp_path / "kohya.safetensors")
    assert_adds(weights, [Lora(file=tmp_path / "kohya.safetensors")], deltas(pairs, 2 / 4))


@pytest.mark.parametrize("stabilised", [False, True])
def test_alpha_and_rank(stabilised: bool, weights: GraphWeights, tiny_bundle: Path, tmp_path: Path) -> None:
    pairs = factors(tiny_bundle, rank=5)
    stored = json.dumps({"transformer.lora_alpha": 8, "transformer.use_rslora": stabilised})
    file = write_lora(tmp_path / "a.safetensors", pairs, lora_adapter_metadata=stored)
    scale = 0.3 * 8 / (math.sqrt(5) if stabilised else 5)
    assert_adds(weights, [Lora(file=file, scale=0.3)], deltas(pairs, scale))


def test_files_add_up(weights: GraphWeights, tiny_bundle: Path, tmp_path: Path) -> None:
    first, second = factors(tiny_bundle, layers=LAYERS[:2]), factors(tiny_bundle, seed=1, rank=7)
    loras = [
        Lora(file=write_lora(tmp_path / "a.safetensors", first), scale=-0.5),
        Lora(file=write_lora(tmp_path / "b.safetensors", second)),
    ]
    expected = deltas(second)
    for layer, delta in deltas(first, -0.5).items():
        expected[layer] = expected[layer] + delta
    assert_adds(weights, loras, expected)


def test_the_file_is_not_needed_after(weights: GraphWeights, tiny_bundle: Path, tmp_path: Path) -> None:
    pairs = factors(tiny_bundle)
    file = write_lora(tmp_path / "a.safetensors", pairs)
    found = read_deltas([Lora(file=file)], weights, transformer_name)
    file.unlink()
    np.testing.assert_allclose(found["proj_in.weight"][0].up, pairs["proj_in"][1])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.floats(-4, 4, width=32))
def test_fuse_is_the_formula(out: int, into: int, rank: int, factor: float) -> None:
    rng = np.random.default_rng(out * 7 + into)
    weight = rng.standard_normal((into, out), dtype=np.float32).T  # as a transposed weight comes
    kept = weight.copy()
    parts = [rng.standard_normal((out, rank), dtype=np.float32), rng.standard_normal((rank, into), dtype=np.float32)]
    got = fuse(weight, [Delta(up=parts[0], down=parts[1], factor=factor)] * 2)
    np.testing.assert_allclose(got, kept + 2 * np.float64(factor) * (parts[0].astype(float) @ parts[1]), **CLOSE)
    np.testing.assert_array_equal(weight, kept)


def refused(weights: GraphWeights, file: Path, problem: str) -> None:
    with pytest.raises(SourceError, match=problem):
        read_deltas([Lora(file=file)], weights, transformer_name)


@pytest.mark.parametrize(
    "key",
    [
        "text_encoder.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",  # diffusers' LTX loader ignores these
        "lora_te_encoder_block_0.lora_down.weight",
        "lora_unet_no_such_layer.lora_down.weight",
        "transformer.proj_in.lora_magnitude_vector",
        "transformer.proj_in.dora_scale",
        "transformer.proj_in.bias",
    ],
)
def test_keys_of_something_else_are_listed(key: str, weights: GraphWeights, tiny_bundle: Path, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "a.safetensors", factors(tiny_bundle) | {"x": factors(tiny_bundle)["proj_in"]})
    refused(weights, file, r"2 tensors that match no weight of .*transformer: transformer\.x\.lora_A")
    save_file({key: np.zeros((4, 16), np.float32)}, tmp_path / "b.safetensors")
    refused(weights, tmp_path / "b.safetensors", f"1 tensors that match no weight of .*transformer: {key}; expected")


def test_a_file_for_a_wider_model(weights: GraphWeights, tiny_bundle: Path, tmp_path: Path) -> None:
    pairs = factors(tiny_bundle)
    down, up = pairs[LAYERS[-1]]
    pairs[LAYERS[-1]] = np.concatenate([down, down], axis=1), up
    refused(
        weights, write_lora(tmp_path / "a.safetensors", pairs), r"as transformer_blocks\.1\.ff\.net\.2\.weight is \["
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a=0.5", ("a", 0.5)),
        ("rank=8/a", ("rank=8/a", 1.0)),
        ("a=-2", ("a", -2.0)),
    ],
)
def test_split_scale(text: str, expected: tuple[str, float]) -> None:
    assert split_scale(text) == expected


def test_resolve_takes_one_or_several(tmp_path: Path) -> None:
    a, b = (write_lora(tmp_path / name / "x.safetensors", {}) for name in ("a", "b") if not (tmp_path / name).mkdir())
    assert resolve(a) == resolve(str(a)) == resolve(a.parent) == (Lora(file=a),)
    assert resolve((a, 0.5)) == resolve([(str(a), 0.5)]) == (Lora(file=a, scale=0.5),)
    assert resolve([a, (b, 2)]) == resolve((a, (b, 2))) == (Lora(file=a), Lora(file=b, scale=2))
    assert resolve((a, b)) == (Lora(file=a), Lora(file=b))


@pytest.mark.parametrize("scale", [math.inf, math.nan, 1e9, "1", None, True])
def test_other_scales_are_refused(scale: object, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "a.safetensors", {})
    with pytest.raises(SourceError, match="expected a finite scale"):
        resolve([(file, scale)])  # type: ignore[list-item]


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere does not exist; expected a LoRA file"):
        resolve(tmp_path / "nowhere")
