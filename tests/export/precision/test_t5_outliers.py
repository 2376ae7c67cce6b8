"""T5-XXL's residual stream passes the largest number of float16: the policy's graphs survive it, plain ones do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import T5Config, T5EncoderModel

from telecine.manifest import Component
from telecine_export.export import Progress, export_component
from telecine_export.families.ltx_video.precision import POLICIES
from telecine_export.families.t5 import text_encoder
from telecine_export.precision.emulate import emulate
from telecine_export.precision.policy import DTYPES, Policy
from telecine_export.precision.trial_models import MadeSession
from telecine_export.precision.typed import Traces
from telecine_export.source import Source

IDS = np.random.default_rng(0).integers(0, 60, (2, 9))
CONFIG = {
    "d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 2, "vocab_size": 60,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "use_cache": False,
}  # fmt: skip
OUTLIERS = 1.5e5  # what the feed-forward layers' outputs are scaled by


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, torch.Tensor]:
    """A tiny T5 whose residual stream reaches some 1e5, and its embeddings of IDS under torch, at float32."""
    torch.manual_seed(0)
    model = T5EncoderModel(T5Config(**CONFIG)).eval()
    largest: list[float] = []
    with torch.no_grad():
        for block in model.encoder.block:
            block.layer[1].DenseReluDense.wo.weight *= OUTLIERS
            block.register_forward_hook(lambda module, inputs, output: largest.append(float(output[0].abs().max())))
        expected = model(torch.from_numpy(IDS)).last_hidden_state
    assert max(largest) > 3e5
    root = tmp_path_factory.mktemp("outliers")
    model.save_pretrained(root / "text_encoder")
    return Source(root=root, pipeline_class="LTXPipeline"), expected


@pytest.fixture(scope="module")
def error(outliers: tuple[Source, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., float]:
    """`error(precision, policy)`: the graph's relative error (NaN where it is not finite), rounded as a GPU rounds.

    With `as_gpu` False, as ONNX Runtime's CPU provider runs it: most operators in float32, between casts.
    """
    source, expected = outliers
    traces = Traces(23)

    def measure(precision: str, policy: Policy, *, as_gpu: bool = True) -> float:
        spec = text_encoder(source.config("text_encoder"))
        folder = tmp_path_factory.mktemp(precision)
        part: Component = export_component(
            source, folder, [spec], precision=precision, opset=23, progress=Progress(), policy=policy, traces=traces
        )
        model = ir.load(folder / part.graphs["main"].file.path)
        if as_gpu:
            emulate(model, DTYPES[precision])
        with MadeSession(part.graphs["main"], model, str(folder / "text_encoder")) as session:
            made = session.run({"input_ids": IDS})["prompt_embeds"]
        return float(np.linalg.norm(made - expected.numpy()) / np.linalg.norm(expected.numpy()))

    return measure


def test_fp16_survives_outliers_with_the_policy_alone(error: Callable[..., float]) -> None:
    assert error("fp16", POLICIES["text_encoder"], as_gpu=False) < 1e-3
    assert error("fp16", POLICIES["text_encoder"]) < 2**-9  # fp16's last bit, twice
    plain = error("fp16", Policy())
    assert not plain < 0.5  # or NaN


def test_bf16_is_better_with_the_policy(error: Callable[..., float]) -> None:
    """Its range is float32's; what the rules keep is the small summands of a large stream."""
    kept, plain = error("bf16", POLICIES["text_encoder"]), error("bf16", Policy())
    assert kept < 1e-2
    assert kept < plain


@pytest.mark.parametrize("taken", ["DenseReluDense", "wo", "layer_norm"])
def test_each_rule_against_overflow_is_needed(taken: str, error: Callable[..., float]) -> None:
    """Without the rule, or with the stream alone in float32, fp16 is wrong."""
    policy = POLICIES["text_encoder"]
    rules = tuple(rule for rule in policy.rules if taken not in rule.modules)
    assert len(rules) < len(policy.rules)
    assert not error("fp16", Policy(rules=rules)) < 1e-2
