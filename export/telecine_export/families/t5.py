"""T5, the text encoder of LTX-Video and CogVideoX: its graph, its patch and what of it stays in float32."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from telecine_export.graphs import GraphSpec
from telecine_export.precision.policy import Policy, Quantised, Rule

Config = Mapping[str, Any]

TEXT_ENCODER = Policy(
    rules=(
        Rule(
            modules=r".*embed_tokens",
            operators=("Gather",),
            half=True,
            reason="a table of half a gigabyte, whose values are small: rounded once, then added to in float32",
        ),
        Rule(
            modules=r"encoder|encoder\.block\.\d+(\.layer\.\d+)?",
            reason="T5-XXL's residual stream passes 65504; in bf16 what late layers add would fall below its last bit",
        ),
        Rule(modules=r".*layer_norm", reason="squares of the residual stream pass 65504 even where it does not"),
        Rule(
            modules=r".*\.DenseReluDense(\.act|\.dropout)?",
            reason="the gated product has T5's largest values, and GELU cubes them",
        ),
        Rule(
            modules=r".*\.DenseReluDense\.wo",
            halves=("fp16",),
            reason="its output goes to the residual stream and passes 65504 as it does (transformers keeps it too)",
        ),
        Rule(
            modules=r".*\.SelfAttention",
            operators=("Add", "Softmax"),
            reason="T5 does not scale its scores: exponentials of large sums (transformers' own softmax is float32)",
        ),
        Rule(modules=r".*relative_attention_bias", reason="a small table that is added to the scores"),
    ),
    quantised=(
        Quantised(
            modules=r".*\.(SelfAttention\.[qkvo]|DenseReluDense\.wi(_\d)?)",
            reason="their inputs are normalised, or averages of what is: one scale a tensor serves them",
        ),
        Quantised(
            modules=r".*\.DenseReluDense\.wo",
            activations=False,
            reason="outliers in its input are thousands of times the rest, which one scale a tensor would flush to 0",
        ),
    ),
)


class TextEncoderGraph(nn.Module):
    """(B, L) token ids → (B, L, D) embeddings. Pads are attended: diffusers passes T5 no mask."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        t5 = T5Config(**config)
        t5._attn_implementation = "eager"  # the relative position bias rules fused attention out
        self.text_encoder = T5EncoderModel(t5).eval().to(dtype)
        patch_t5(self.text_encoder)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.text_encoder(input_ids).last_hidden_state.float()


def text_encoder(config: Config) -> GraphSpec:
    return GraphSpec(
        component="text_encoder",
        build=lambda dtype: TextEncoderGraph(config, dtype),
        sample={"input_ids": torch.zeros(2, 12, dtype=torch.int64)},
        axes={"input_ids": {0: "batch", 1: "text_length"}},
        output="prompt_embeds",
        output_shape=("batch", "text_length", config["d_model"]),
        checkpoint="text_encoder",
        rename=lambda name: name.removeprefix("text_encoder."),
    )


def _bucket_by_bounds(bounds: list[int], relative_position: Tensor, **unused: object) -> Tensor:
    distance = relative_position.abs()
    bucket = sum((distance >= bound).to(torch.long) for bound in bounds)
    return bucket + (relative_position > 0).to(torch.long) * (len(bounds) + 1)


def patch_t5(model: nn.Module) -> None:
    """Count T5's relative position buckets by the distances where torch's own bucket changes.

    Distances 16, 32 and 64 sit exactly on bucket boundaries of a float32 logarithm: a backend whose `log` differs in
    the last bit moves them to another bucket. Integers compare exactly everywhere.
    """
    for module in model.modules():
        if isinstance(module, T5Attention) and module.has_relative_attention_bias:
            buckets = T5Attention._relative_position_bucket(
                -torch.arange(module.relative_attention_max_distance + 1, device="cpu"),
                bidirectional=True,
                num_buckets=module.relative_attention_num_buckets,
                max_distance=module.relative_attention_max_distance,
            ).tolist()
            # Where the buckets step up by n, the same bound counts n times.
            bounds = [i for i in range(1, len(buckets)) for _ in range(buckets[i] - buckets[i - 1])]
            module._relative_position_bucket = partial(_bucket_by_bounds, bounds)  # type: ignore[method-assign]
