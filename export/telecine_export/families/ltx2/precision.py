"""LTX-2's precision policies: what stays in float32 and why, and what FP8 takes."""

from __future__ import annotations

from telecine_export.precision.policy import Policy, Quantised, Rule

TRANSFORMER = Policy(
    rules=(
        Rule(operators=("Attention",), half=True, reason="attention kernels are half precision, and sum in float32"),
        Rule(
            modules=r"((audio_)?(time_embed|prompt_adaln)|av_cross_attn_(video|audio)_\w+)(\..*)?",
            reason="a timestep of 1000 has steps of 0.5 in fp16 and of 4 in bf16, and every block is modulated by it",
        ),
        Rule(
            modules=r"(audio_)?(proj_in|proj_out|norm_out)",
            reason="patchify and output projections: all that is seen and heard passes",
        ),
        Rule(modules=r"transformer", reason="the last modulations: nothing to gain"),
        Rule(
            modules=r"transformer_blocks\.\d+",
            reason="AdaLN's scales, shifts and gates, and the residual streams that every block adds to",
        ),
        Rule(
            modules=r".*\.(audio_)?norm(\d|_q|_k)|.*\.(audio_to_video|video_to_audio)_norm",
            reason="norms: sums of squares over the width",
        ),
        Rule(
            modules=r"(cross_attn_)?(audio_)?rope|.*\.((audio_)?attn1|audio_to_video_attn|video_to_audio_attn)",
            operators=("Add", "Mul", "Sub"),  # opset 20 spells attention out in MatMul and Softmax: kernels are half
            reason="RoPE turns queries and keys in float32, as diffusers does",
        ),
    ),
    quantised=(
        Quantised(
            modules=(
                r"transformer_blocks\.\d+\.("
                r"((audio_)?attn[12]|audio_to_video_attn|video_to_audio_attn)(\.to_(q|k|v|qkv|kv)|\.to_out\.0)?"
                r"|(audio_)?ff\.net\.(0\.proj|2))"
            ),
            reason="nearly all of the work; their inputs are normalised or bounded",
        ),
    ),
    block=r"transformer_blocks\.(\d+)(?:\.|$)",
    edge_share=1 / 16,  # 3 of 48
)
