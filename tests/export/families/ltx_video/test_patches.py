"""Each patch against the code that it stands in for; the classes of diffusers and transformers stay untouched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoCausalConv3d
from diffusers.models.embeddings import Timesteps
from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed, apply_rotary_emb
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from telecine.rope import grid_index, make_tables, video_positions
from telecine.shapes import Grid, LatentShape
from telecine_export.families.ltx_video.networks import rope_frequencies
from telecine_export.families.ltx_video.patches import (
    STG_ATTENTION_VALUES,
    STG_SKIP_ATTENTION,
    STG_SKIP_BLOCK,
    TableRope,
    patch_ltx_noise,
    patch_ltx_transformer,
    patch_ltx_vae,
    rotate,
)
from telecine_export.families.t5 import patch_t5
from telecine_export.timesteps import TorchTimesteps, computed_constants, patch_timesteps


@pytest.mark.parametrize("flip", [True, False])
def test_timesteps_with_torchs_frequencies(flip: bool) -> None:
    original = Timesteps(num_channels=256, flip_sin_to_cos=flip, downscale_freq_shift=0)
    stand_in = TorchTimesteps(original)
    stand_in.frequencies = stand_in.computed[0]  # what trace() gives the graph
    timesteps = torch.tensor([0.0, 0.03, 421.9, 1000.0])
    assert torch.equal(stand_in(timesteps), original(timesteps))


def test_every_timestep_projection_is_found() -> None:
    with torch.device("meta"):
        model: Any = LTXVideoTransformer3DModel(num_layers=1, num_attention_heads=2, attention_head_dim=16)
    patch_timesteps(model)
    assert list(computed_constants(model)) == ["time_embed.emb.time_proj.frequencies"]


@pytest.mark.parametrize(("heads", "head_dim"), [(4, 16), (3, 16), (32, 64)], ids=["64", "48", "2048"])
def test_gathered_tables_rotate_as_diffusers_does(heads: int, head_dim: int) -> None:
    """64 and 2048 are not multiples of 6, so that leading columns are padded; 48 is."""
    width, shape, grid = heads * head_dim, LatentShape(frames=3, height=2, width=5), Grid(spatial=32, temporal=8)
    states = torch.randn(2, shape.tokens, width)
    rope = LTXVideoRotaryPosEmbed(dim=width)
    expected = apply_rotary_emb(states, rope(states, shape.frames, shape.height, shape.width, (8 / 25, 32, 32)))
    frequencies = rope_frequencies({"num_attention_heads": heads, "attention_head_dim": head_dim}).numpy()
    tables = make_tables(video_positions(shape, grid, 25), grid_index(shape), frequencies)
    arrays = (torch.from_numpy(array) for array in (tables.cos, tables.sin, tables.index))
    got = rotate(states, TableRope(width)(states, None, None, None, None, tuple(arrays)))
    # One rounding of a cosine (6e-8) times states of about 4.
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", [1, 3, (3, 1, 1)])
@pytest.mark.parametrize("frames", [1, 4])
def test_causal_convolution(causal: bool, kernel: Any, frames: int) -> None:
    conv = LTXVideoCausalConv3d(3, 5, kernel_size=kernel, is_causal=causal).eval()
    states = torch.randn(2, 3, frames, 6, 7)
    expected = conv(states)
    patch_ltx_vae(conv)
    assert torch.equal(conv(states), expected)


@pytest.mark.parametrize("conditioned", [True, False], ids=["timestep", "no-timestep"])
def test_noise_maps_in_place_of_draws(conditioned: bool) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "latent_channels": 4, "decoder_block_out_channels": (8, 16), "decoder_layers_per_block": (1, 2, 1),
        "decoder_spatio_temporal_scaling": (True, True), "decoder_inject_noise": (True, True, True),
        "upsample_residual": (True, True), "upsample_factor": (2, 2), "timestep_conditioning": conditioned,
    }  # fmt: skip
    decoder: Any = AutoencoderKLLTXVideo(**settings).decoder.eval()
    for name, parameter in decoder.named_parameters():
        if "per_channel_scale" in name:
            torch.nn.init.normal_(parameter)  # diffusers starts them at 0
    latents, timestep = torch.randn(2, 4, 2, 3, 5), torch.tensor([0.05, 0.3]) if conditioned else None
    with torch.no_grad():
        torch.manual_seed(7)
        expected = decoder(latents, timestep)
        names = list(decoder.state_dict())
        maps = patch_ltx_noise(decoder)
        assert list(decoder.state_dict()) == names
        assert maps.counts == {1: 2, 2: 4, 4: 2}
        torch.manual_seed(7)
        maps.levels = {
            scale: torch.stack([torch.randn(3 * scale, 5 * scale) for _ in range(count)])
            for scale, count in maps.counts.items()
        }
        assert torch.equal(decoder(latents, timestep), expected)


@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (16, 64), (8, 20), (64, 256)])
def test_t5_buckets_by_integer_bounds(buckets: int, reach: int) -> None:
    settings: dict[str, Any] = {"relative_attention_num_buckets": buckets, "relative_attention_max_distance": reach}
    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=10, **settings)
    model = T5EncoderModel(config)
    patch_t5(model)
    (attention,) = [m for m in model.modules() if isinstance(m, T5Attention) and m.has_relative_attention_bias]
    distances = torch.arange(-2 * reach, 2 * reach + 1)
    expected = T5Attention._relative_position_bucket(
        distances, bidirectional=True, num_buckets=buckets, max_distance=reach
    )
    assert torch.equal(attention._relative_position_bucket(distances), expected)


def test_a_patched_transformer_computes_what_it_did() -> None:
    """With no perturbation asked for, the patched network is diffusers' own up to rounding."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 16}
    model: Any = LTXVideoTransformer3DModel(num_layers=2, num_attention_heads=2, attention_head_dim=16, **settings)
    model.eval()
    shape = LatentShape(frames=2, height=3, width=2)
    inputs = {
        "hidden_states": torch.randn(2, shape.tokens, 8),
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "timestep": torch.rand(2, shape.tokens) * 1000,
        "encoder_attention_mask": torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    }
    with torch.no_grad():
        size = {"num_frames": shape.frames, "height": shape.height, "width": shape.width}
        expected = model(**inputs, **size, rope_interpolation_scale=(8 / 25, 32, 32)).sample
        stg = patch_ltx_transformer(model)
        for name, value in computed_constants(model).items():
            model.get_submodule(name.rpartition(".")[0]).frequencies = value
        stg.modes = torch.zeros(2, 2, dtype=torch.int32)
        frequencies = rope_frequencies(model.config).numpy()
        positions = video_positions(shape, Grid(spatial=32, temporal=8), 25)
        tables = make_tables(positions, grid_index(shape), frequencies)
        arrays = tuple(torch.from_numpy(array) for array in (tables.cos, tables.sin, tables.index))
        got = model(**inputs, video_coords=arrays).sample
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def perturbed_by_definition(block: Any, mode: int, inputs: dict[str, Any]) -> torch.Tensor:
    """diffusers' own block with one perturbation written into the tensors that its attention passes on.

    Lightricks' SkipLayerStrategy: AttentionValues, AttentionSkip and TransformerBlock.
    """
    if mode == STG_SKIP_BLOCK:
        skipped: torch.Tensor = inputs["hidden_states"]
        return skipped
    seen: dict[str, torch.Tensor] = {}
    attention = block.attn1
    replacement = {STG_ATTENTION_VALUES: "values", STG_SKIP_ATTENTION: "states"}.get(mode)
    hooks = [
        attention.register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(states=kwargs["hidden_states"]), with_kwargs=True
        ),
        attention.to_v.register_forward_hook(lambda module, args, output: seen.update(values=output)),
        attention.to_out[0].register_forward_pre_hook(
            lambda module, args: (seen[replacement],) if replacement else None
        ),
    ]
    output: torch.Tensor = block(**inputs)
    for hook in hooks:
        hook.remove()
    return output


def test_each_batch_element_is_perturbed_by_its_own_mode() -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 16}
    model: Any = LTXVideoTransformer3DModel(num_layers=1, num_attention_heads=2, attention_head_dim=16, **settings)
    block, tokens = model.eval().transformer_blocks[0], 6
    modes = [0, STG_ATTENTION_VALUES, STG_SKIP_ATTENTION, STG_SKIP_BLOCK]
    angles = torch.rand(tokens, 16)
    inputs = {
        "hidden_states": torch.randn(4, tokens, 32),
        "encoder_hidden_states": torch.randn(4, 5, 32),
        "temb": torch.randn(4, 1, 6 * 32),
        "encoder_attention_mask": torch.zeros(4, 1, 5),
    }
    full = tuple(table.repeat_interleave(2, dim=-1)[None] for table in (angles.cos(), angles.sin()))
    with torch.no_grad():
        expected = [
            perturbed_by_definition(
                block, mode, {**{name: v[i : i + 1] for name, v in inputs.items()}, "image_rotary_emb": full}
            )
            for i, mode in enumerate(modes)
        ]
        patch_ltx_transformer(model).modes = torch.tensor([modes], dtype=torch.int32)
        got = block(**inputs, image_rotary_emb=(angles.cos(), angles.sin()))
    torch.testing.assert_close(got, torch.cat(expected), atol=1e-5, rtol=0)
    assert all((expected[0] - other).abs().max() > 0.1 for other in expected[1:])


def test_the_classes_stay_as_they_are() -> None:
    before = (LTXVideoCausalConv3d.forward, T5Attention._relative_position_bucket)
    vae: Any = AutoencoderKLLTXVideo(block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8))
    patch_ltx_vae(vae)
    assert before == (LTXVideoCausalConv3d.forward, T5Attention._relative_position_bucket)
    fresh = LTXVideoCausalConv3d(2, 2)
    assert "forward" not in vars(fresh)
    assert np.isfinite(fresh(torch.randn(1, 2, 2, 4, 4)).detach().numpy()).all()
