"""Policies decide by module and operator, the first rule first; what a component cannot have is refused."""

from __future__ import annotations

import pytest

from telecine.errors import SourceError
from telecine_export.families.ltx_video.precision import POLICIES
from telecine_export.family import FAMILIES
from telecine_export.precision.plans import plan_components
from telecine_export.precision.policy import Policy, Rule

NETWORKS = ["text_encoder", "transformer", "vae_encoder", "vae_decoder"]
COMPONENTS = [*NETWORKS, "denoise_step"]


def float32(component: str, module: str, operator: str, half: str) -> bool:
    rule = POLICIES[component].rule(module, operator, half)
    return rule is not None and not rule.half


def test_the_first_rule_that_matches_decides() -> None:
    keep = Rule(modules="a", operators=("Mul",), half=True, reason="r")
    policy = Policy(rules=(keep, Rule(modules="a", halves=("bf16",), reason="r")))
    assert policy.rule("a", "Mul", "bf16") is keep
    assert policy.rule("a", "Add", "bf16") is policy.rules[1]
    assert policy.rule("a", "Add", "fp16") is None
    assert policy.rule("a.b", "Mul", "bf16") is None  # whole names


@pytest.mark.parametrize(
    ("component", "module", "operator", "fp16", "bf16"),
    [
        ("text_encoder", "encoder.block.3.layer.1", "Add", True, True),
        ("text_encoder", "encoder.block.3.layer.1.DenseReluDense.wo", "MatMul", True, False),
        ("text_encoder", "encoder.block.3.layer.1.DenseReluDense.wi_0", "MatMul", False, False),
        ("text_encoder", "encoder.block.3.layer.0.SelfAttention", "Softmax", True, True),
        ("text_encoder", "encoder.final_layer_norm", "Mul", True, True),
        ("transformer", "transformer_blocks.7", "Mul", True, True),
        ("transformer", "transformer_blocks.7.attn1", "Mul", True, True),
        ("transformer", "transformer_blocks.7.attn1", "Attention", False, False),
        ("transformer", "transformer_blocks.7.attn1.norm_q", "RMSNormalization", True, True),
        ("transformer", "transformer_blocks.7.ff.net.2", "MatMul", False, False),
        ("transformer", "time_embed.emb.timestep_embedder.linear_1", "Gemm", True, True),
        ("transformer", "proj_out", "MatMul", True, True),
        ("vae_decoder", "decoder.conv_out.conv", "Conv", True, True),
        ("vae_decoder", "decoder.up_blocks.0.resnets.1.conv1.conv", "Conv", False, False),
        ("vae_decoder", "decoder.up_blocks.0.resnets.1.norm1", "Pow", True, True),
        ("latent_upsampler", "upsampler.0", "Resize", False, True),
    ],
)
def test_ltx_video_keeps_what_its_reasons_say(
    component: str, module: str, operator: str, fp16: bool, bf16: bool
) -> None:
    assert float32(component, module, operator, "fp16") is fp16
    assert float32(component, module, operator, "bf16") is bf16


def test_every_rule_has_a_reason() -> None:
    for policy in POLICIES.values():
        assert all(len(each.reason) > 20 for each in (*policy.rules, *policy.quantised))


@pytest.mark.parametrize(
    ("depth", "edges"),
    [(1, set()), (2, set()), (3, {0, 2}), (6, {0, 5}), (28, {0, 1, 26, 27}), (48, {0, 1, 2, 45, 46, 47})],
)
def test_edge_blocks_follow_the_depth(depth: int, edges: set[int]) -> None:
    assert POLICIES["transformer"].edge_blocks(depth) == edges


def test_a_policy_without_blocks_has_no_edges() -> None:
    assert POLICIES["text_encoder"].edge_blocks(0) == frozenset()


def test_fp8_leaves_the_vae_at_its_base() -> None:
    plans = plan_components(POLICIES, COMPONENTS, "fp8", {"text_encoder": "bf16"})
    precisions = {name: plans[name].precision for name in NETWORKS}
    assert precisions == {"text_encoder": "bf16", "transformer": "fp8", "vae_encoder": "fp16", "vae_decoder": "fp16"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp8"])
def test_host_math_is_float32_in_every_bundle(precision: str) -> None:
    assert plan_components(POLICIES, COMPONENTS, precision, {})["denoise_step"].precision == "fp32"
    assert (
        plan_components(POLICIES, COMPONENTS, precision, {"denoise_step": "fp32"})["denoise_step"].precision == "fp32"
    )


@pytest.mark.parametrize(
    ("precision", "own", "message"),
    [
        ("int3", {}, "precision int3; expected one of fp32, fp16, bf16, fp8"),
        ("fp16", {"transformer": "int3"}, "precision int3 for transformer"),
        ("fp16", {"vae_decoder": "fp8"}, "fp8 for vae_decoder: 3D convolutions have no FP8 kernels"),
        ("fp16", {"denoise_step": "fp16"}, "fp16 for denoise_step: it has no weights to save.*expected fp32"),
        ("fp8", {"denoise_step": "fp8"}, "fp8 for denoise_step: it has no weights to save.*expected fp32"),
        ("fp16", {"unet": "fp16"}, "a precision for unet; expected one of this source's components: text_encoder"),
    ],
)
def test_what_cannot_be_had_is_refused(precision: str, own: dict[str, str], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        plan_components(POLICIES, COMPONENTS, precision, own)


@pytest.mark.parametrize(
    ("family", "module"),
    [
        ("LTXPipeline", "transformer_blocks.3.attn1.to_qkv"),
        ("LTXPipeline", "transformer_blocks.3.attn2.to_kv"),
        ("LTXPipeline", "transformer_blocks.3.attn2.to_q"),
        ("CogVideoXPipeline", "transformer_blocks.3.attn1.to_qkv"),
        ("CogVideoXPipeline", "transformer_blocks.3.attn1.to_v"),
    ],
)
def test_joined_projections_are_quantised_as_separate_ones_are(family: str, module: str) -> None:
    policy = FAMILIES[family].policies["transformer"]
    assert policy.quantises(module) is not None
    assert policy.block_of(module) == 3
