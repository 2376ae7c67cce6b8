"""CogVideoX' export: every option of the transformer in a graph or refused, graph contracts, host settings, verify."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from make_tiny_cogvideox import TRANSFORMER, VAE, tiny_cogvideox_transformer

from telecine.bundle import Bundle
from telecine.errors import BundleError, SourceError
from telecine.families.cogvideox.host import Host
from telecine.families.cogvideox.positions import Place
from telecine_export.export import Progress, export_component
from telecine_export.families.cogvideox import networks as family
from telecine_export.families.cogvideox import vae as cogvideox_vae
from telecine_export.families.cogvideox.checks import check_text, check_transformer, check_vae
from telecine_export.families.cogvideox.patches import flatten_caches, nest_caches, patch_cogvideox_vae
from telecine_export.source import open_source
from telecine_export.verify import verify_bundle

STYLES = ("2b", "5b", "5b-I2V", "1.5-5b", "1.5-5b-I2V")
ROTARY = {"use_rotary_positional_embeddings": True}
IMAGE_TO_VIDEO = "CogVideoXImageToVideoPipeline"
# One call of a network: float32 sums in another order.
TOLERANCE = 1e-5


def config_of(source: Path, component: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((source / component / "config.json").read_text())
    return config


# The transformer


# Every parameter of the constructor that changes what is computed, away from its default, a few at a time.
VARIANTS: dict[str, dict[str, Any]] = {
    "sincos": {
        "spatial_interpolation_scale": 1.25, "temporal_interpolation_scale": 2.0, "flip_sin_to_cos": False,
        "freq_shift": 1, "attention_bias": False, "patch_size": 1,
    },
    "rotary": ROTARY | {
        "num_attention_heads": 3, "attention_head_dim": 32, "activation_fn": "gelu", "timestep_activation_fn": "gelu",
        "norm_eps": 1e-3, "patch_bias": False, "patch_size": 4,
    },
    "groups": ROTARY | {
        "patch_size_t": 3, "norm_elementwise_affine": False, "num_layers": 1, "dropout": 0.5,
        "text_embed_dim": 24, "time_embed_dim": 40,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_constructors_parameters_reach_the_graph(variant: str, tmp_path: Path) -> None:
    model = tiny_cogvideox_transformer(seed=3, **VARIANTS[variant]).eval()
    model.save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}')
    source = open_source(str(tmp_path))
    config = family.transformer_config(source)
    spec = family.transformer(config)
    (tmp_path / "out").mkdir()
    export_component(source, tmp_path / "out", [spec], precision="fp32", opset=23, progress=Progress())
    session = ort.InferenceSession(
        str(tmp_path / "out" / "transformer" / "main.onnx"), providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(0)
    patch, group, place = config["patch_size"], config["patch_size_t"] or 1, Place(2, 3, 2)
    hidden = (3, place.frames * group, 4, place.rows * patch, place.columns * patch)
    feeds = {
        "hidden_states": random.standard_normal(hidden, dtype=np.float32),
        "encoder_hidden_states": random.standard_normal((3, 226, config["text_embed_dim"]), dtype=np.float32),
        "timestep": np.array([999, 3, 250], np.float32),
    }
    positions = Host.parse(host_with(config)).positions.inputs(place)
    got = session.run(None, feeds | positions)[0]
    rotary = None
    if "rope_cos" in positions:
        rotary = tuple(
            torch.from_numpy(positions[name].reshape(-1, positions[name].shape[-1]).repeat(2, axis=1))
            for name in ("rope_cos", "rope_sin")
        )
    with torch.no_grad():
        given = {name: torch.from_numpy(values) for name, values in feeds.items()}
        expected = model(**given, image_rotary_emb=rotary, return_dict=False)[0].numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


def host_with(config: dict[str, Any]) -> dict[str, Any]:
    """A host configuration around a transformer's."""
    return {
        "spatial_ratio": 8, "temporal_ratio": 4, "patch_size": config["patch_size"],
        "patch_size_t": config["patch_size_t"], "latent_channels": 4, "image_channels": 0, "text_channels": 32,
        "text_length": 226,
        "scaling_factor": 0.7, "invert_scale_latents": False, "positions": family.positions(config), "ofs": None,
        "widest_activations": {"vae_encoder": 1.0, "vae_decoder": 1.0},
        "vae_tile": {"height": 240, "width": 360}, "scheduler": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "pipeline", "message"),
    [
        ({"out_channels": None}, "CogVideoXPipeline", "out_channels None; expected 4"),
        ({"in_channels": 8}, "CogVideoXPipeline", "in_channels 8 in a CogVideoXPipeline; expected 4"),
        ({}, IMAGE_TO_VIDEO, "in_channels 4 in a CogVideoXImageToVideoPipeline; expected 8"),
        ({"ofs_embed_dim": 16}, "CogVideoXPipeline", "ofs_embed_dim 16 in a CogVideoXPipeline"),
        ({"temporal_compression_ratio": 8}, "CogVideoXPipeline", "temporal_compression_ratio 8"),
        ({"use_learned_positional_embeddings": True}, "CogVideoXPipeline", "without rotary ones"),
        ({"patch_size_t": 2}, "CogVideoXPipeline", "patch_size_t 2 without rotary"),
        (
            ROTARY | {"patch_size_t": 2, "use_learned_positional_embeddings": True},
            "CogVideoXPipeline",
            "patch_size_t 2 with learned",
        ),
        (ROTARY | {"attention_head_dim": 8}, "CogVideoXPipeline", "attention_head_dim 8; expected a multiple of 16"),
        ({"attention_head_dim": 12}, "CogVideoXPipeline", "a width of 24"),
        (
            ROTARY | {"use_learned_positional_embeddings": True, "sample_width": 13},
            "CogVideoXPipeline",
            "learned positional embeddings for 8 x 13",
        ),
    ],
    ids=str,
)
def test_what_no_graph_covers_is_refused(change: dict[str, Any], pipeline: str, message: str) -> None:
    config = family.complete(CogVideoXTransformer3DModel, TRANSFORMER | change)
    with pytest.raises(SourceError, match=message):
        check_transformer(Path("transformer"), config, family.complete(AutoencoderKLCogVideoX, VAE), pipeline)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temporal_compression_ratio": 8}, "temporal_compression_ratio 8"),
        ({"block_out_channels": (8, 8)}, "2 levels"),
        ({"use_quant_conv": True}, "use_quant_conv"),
        ({"use_post_quant_conv": True}, "use_post_quant_conv"),
        ({"in_channels": 4}, "4 channels in"),
    ],
    ids=str,
)
def test_a_vae_without_these_chunks_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        check_vae(Path("vae"), family.complete(AutoencoderKLCogVideoX, VAE | change))


def test_a_text_encoder_of_another_width_is_refused() -> None:
    with pytest.raises(SourceError, match="d_model 64; expected 32, the transformer's text_embed_dim"):
        check_text(Path("text_encoder"), {"d_model": 64}, TRANSFORMER)


def test_parts_of_cogvideox_are_not_held_against_ltx_video(
    cogvideox: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    """An override's widths are the family's to check: `in_channels` of I2V are twice the VAE's."""
    source, _ = cogvideox("5b-I2V")
    opened = open_source(str(source), vae=str(source / "vae"))
    assert len(family.graphs(opened)) == 13


# The VAE


def test_caches_are_those_of_the_convolutions_that_look_back() -> None:
    """The real VAE keeps 38 in the decoder and 30 in the encoder; diffusers holds 74 more that nobody reads."""
    config = family.complete(AutoencoderKLCogVideoX, {})
    decoder, encoder = (cogvideox_vae.cache_shapes(config, half) for half in ("decoder", "encoder"))
    assert (len(decoder), len(encoder)) == (38, 30)
    assert decoder["conv_in"] == (16, 1)
    assert decoder["conv_out"] == (128, 8)
    assert encoder["conv_in"] == (3, 8)


def test_caches_nest_as_they_flatten() -> None:
    one, two = torch.ones(1), torch.ones(2)
    nested = {"conv_in": one, "up": {"resnet": {"conv1": two, "norm1": {"conv_y": None}}, "empty": {}}}
    flat = flatten_caches(nested)
    assert list(flat) == ["conv_in", "up.resnet.conv1"]
    assert nest_caches(flat) == {"conv_in": one, "up": {"resnet": {"conv1": two}}}


def test_the_patched_vae_is_diffusers_own_and_its_classes_stay() -> None:
    torch.manual_seed(0)
    vae: Any = AutoencoderKLCogVideoX(**VAE).eval()
    fresh: Any = AutoencoderKLCogVideoX(**VAE).eval()
    fresh.load_state_dict(vae.state_dict())
    patch_cogvideox_vae(fresh.decoder)
    patch_cogvideox_vae(fresh.encoder)
    latents = torch.randn(2, 4, 3, 3, 2)
    video = torch.randn(1, 3, 13, 16, 24)
    with torch.no_grad():
        for half, given in (("decoder", latents), ("encoder", video)):
            expected, caches = getattr(vae, half)(given)
            got, kept = getattr(fresh, half)(given)
            torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)
            whole = flatten_caches(caches)
            for name, cache in flatten_caches(kept).items():
                torch.testing.assert_close(cache, whole[name], rtol=0, atol=TOLERANCE)
    assert "forward" not in vars(vae.decoder.conv_in)


# Bundles


@pytest.mark.parametrize("style", STYLES)
def test_the_graph_contracts(cogvideox: Callable[..., tuple[Path, Path]], style: str) -> None:
    source, bundle = cogvideox(style)
    manifest = Bundle.open(bundle).manifest
    assert (manifest.family, manifest.variant) == ("cogvideox", style)
    inputs = {spec.name: spec.shape for spec in manifest.components["transformer"].graphs["main"].inputs}
    expected = {"2b": {"position_frames", "position_columns", "position_rows"}, "5b-I2V": {"rope_cos", "rope_sin"}}
    expected |= {"1.5-5b-I2V": {"rope_cos", "rope_sin", "ofs"}}
    own = inputs.keys() - {"hidden_states", "encoder_hidden_states", "timestep"}
    assert own == expected.get(style, {"rope_cos", "rope_sin"})
    if style == "5b-I2V":  # its learned table is of one size
        assert inputs["hidden_states"] == ("batch", 3, 8, 8, 12)
        assert inputs["encoder_hidden_states"] == ("batch", 226, 32)
    else:
        frames = "2*frame_groups" if style.startswith("1.5") else "frame_groups"
        channels = config_of(source, "transformer")["in_channels"]
        assert inputs["hidden_states"] == ("batch", frames, channels, "2*rows", "2*columns")
    for component in ("vae_encoder", "vae_decoder"):
        graphs = manifest.components[component].graphs
        assert list(graphs) == ["image", "first", "first_even", "next"]
        caches = [spec.name for spec in graphs["next"].inputs if spec.name.startswith("cache_")]
        assert [spec.name.removeprefix("new_") for spec in graphs["first"].outputs][1:] == caches
        assert [spec.name for spec in graphs["next"].outputs][1:] == [f"new_{name}" for name in caches]
        assert len(graphs["image"].outputs) == 1


def test_all_graphs_of_the_vae_share_their_weights(cogvideox: Callable[..., tuple[Path, Path]]) -> None:
    source, bundle = cogvideox("2b")
    manifest = Bundle.open(bundle).manifest
    with open_source(str(source)).checkpoint("vae") as vae:
        counts = {
            half: sum(vae.load(name).numel() for name in vae.names() if name.startswith(half))
            for half in ("encoder", "decoder")
        }
    for half, count in counts.items():
        component = manifest.components[f"vae_{half}"]
        assert component.parameters == count
        assert component.weights.size < 4 * count + 4096 * 100
        places = []
        for role in component.graphs:
            model = onnx.load(str(bundle / f"vae_{half}" / f"{role}.onnx"), load_external_data=False)
            places.append(
                {
                    each.name: next(entry.value for entry in each.external_data if entry.key == "offset")
                    for each in model.graph.initializer
                    if each.data_location == onnx.TensorProto.EXTERNAL
                }
            )
        assert all(place == places[0] for place in places)


def test_the_host_is_told_what_its_math_needs(cogvideox: Callable[..., tuple[Path, Path]]) -> None:
    host = Bundle.open(cogvideox("1.5-5b-I2V")[1]).manifest.host
    parsed = Host.parse(host)
    assert (parsed.grid.patch, parsed.grid.patch_t, parsed.grid.chunked) == (2, 2, True)
    assert (parsed.image_channels, parsed.ofs, parsed.invert_scale_latents) == (4, 2.0, True)
    assert parsed.tile == (48, 80)
    assert host["sample"] == {"height": 160, "width": 192, "num_frames": 9}
    # 8 channels in the largest chunk's 13 frames, or 9, at 64 pixels a latent.
    assert (parsed.encoder_widest, parsed.decoder_widest) == (8 * 13 * 64, 8 * 9 * 64)


def test_a_scheduler_that_the_runtime_lacks_is_refused_at_export(
    cogvideox: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(cogvideox("5b")[0], source)
    path = source / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "DDIMScheduler"}))
    with pytest.raises(BundleError, match="class_name is 'DDIMScheduler'"):
        cogvideox_host(source)


def cogvideox_host(source: Path) -> dict[str, Any]:
    return family.host(open_source(str(source)))


# Verify


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("style", ["2b", pytest.param("5b-I2V", marks=pytest.mark.slow), "1.5-5b-I2V"])
def test_an_exported_bundle_passes_every_stage(cogvideox: Callable[..., tuple[Path, Path]], style: str) -> None:
    source, bundle = cogvideox(style)
    report = verify_bundle(bundle, open_source(str(source)))
    assert report.passed, report.first_divergence
    assert [stage.name for stage in report.stages][-7:] == [
        "prompt_embeds", "start", "schedule", "positions", "latents", "decode_input", "frames"
    ]  # fmt: skip
    assert not [stage.detail for stage in report.stages if stage.detail]


@pytest.mark.parametrize(
    ("host", "stage"),
    [
        ({"scheduler": {"timestep_spacing": "leading"}}, "schedule"),
        ({"positions": {"spatial_interpolation_scale": 1.0}}, "positions"),
        ({"scheduler": {"snr_shift_scale": 1.0}}, "latents"),
        ({"scaling_factor": 1.0}, "decode_input"),
    ],
    ids=["spacing", "positions", "shift", "scale"],
)
def test_other_host_math_is_caught_at_its_stage(
    cogvideox: Callable[..., tuple[Path, Path]], edited_bundle: Callable[..., Path], host: dict[str, Any], stage: str
) -> None:
    source, bundle = cogvideox("2b")
    own = Bundle.open(bundle).manifest.host
    changed = {name: own[name] | value if isinstance(value, dict) else value for name, value in host.items()}
    report = verify_bundle(
        edited_bundle(bundle, host=changed),
        open_source(str(source)),
        stages=["schedule", "positions", "latents", "decode_input"],
    )
    assert report.first_divergence == stage
