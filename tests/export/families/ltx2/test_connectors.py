"""The connectors' graph, fed by the runtime, against diffusers' connectors; then the whole path from prompts on.

Tolerance: float32 sums in another order, over values of a standard deviation near 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTX2Pipeline
from doubles.ltx2_text import TorchText, export_session, make_text_source
from make_tiny_ltx2 import CONNECTOR_STYLES, CONNECTORS, REGISTERS, tiny_connectors

from telecine.errors import SourceError
from telecine.families.ltx2.prompts import texts
from telecine.families.ltx2.request import DEFAULTS, LTX2Request
from telecine.families.ltx2.text import Connectors
from telecine.tokenizer import Tokenizer
from telecine_export.families.ltx2 import connectors, gemma
from telecine_export.source import Source
from telecine_export.tokenizer import GEMMA, load_tokenizer, save_tokenizer_json

TOLERANCE = 1e-5
# Masks of (B, L): prompts padded in front, as the pipelines make them; any other, as a caller may pass with embeddings.
MASKS = (
    np.concatenate([np.zeros((1, 11)), np.ones((1, 5))], axis=1),
    np.stack([np.arange(48) >= 48 - tokens for tokens in (1, 48, 23)]),
    np.stack([np.arange(32) % 3 > 0, np.arange(32) < 7]),
)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "2.0": ("2.0", {}),
    "2.3": ("2.3", {}),
    # Padding that is not attended to, pairs of neighbours that turn, frequencies in single precision, places elsewhere.
    "no registers": (
        "2.3",
        {
            "video_connector_num_learnable_registers": None,
            "audio_connector_num_learnable_registers": None,
            "rope_type": "interleaved",
            "rope_double_precision": False,
            "rope_theta": 100.0,
            "connector_rope_base_seq_len": 50,
            "audio_gated_attn": False,
            "audio_connector_num_layers": 1,
        },
    ),
}


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def runtime_side(source: Source) -> Connectors:
    """As the runtime reads it from a manifest."""
    told = connectors.host(gemma.connectors_config(source))
    return Connectors(
        registers=told["registers"],
        base_length=told["base_length"],
        frequencies=np.array(told["frequencies"], np.float32),
        audio_frequencies=np.array(told["audio_frequencies"], np.float32),
    )


@pytest.mark.parametrize("variant", [pytest.param("2.0", marks=pytest.mark.slow), "2.3", "no registers"])
def test_outputs_are_those_of_diffusers(variant: str, tmp_path: Path) -> None:
    style, changes = VARIANTS[variant]
    source = make_text_source(tmp_path / "source", style=style, **changes)
    session = export_session(source, tmp_path / "out", connectors.spec(source))
    oracle = TorchText(source)
    width, states = CONNECTORS["caption_channels"], CONNECTORS["text_proj_in_factor"]
    for mask in MASKS:
        hidden = torch.randn(*mask.shape, width, states, generator=torch.Generator().manual_seed(1))
        features, expected = oracle.connect(hidden, mask.astype(np.int64))
        feeds = {"prompt_embeds": features, **runtime_side(source).inputs(mask.astype(np.float32))}
        assert {name: each.dtype.kind for name, each in feeds.items()} == {
            each.name: "i" if "int64" in each.type else "f" for each in session.get_inputs()
        }
        got = dict(zip(expected, session.run(list(expected), feeds), strict=True))
        for name, values in expected.items():
            assert values.std() > 0.5
            np.testing.assert_allclose(got[name], values, rtol=0, atol=TOLERANCE, err_msg=name)


PROMPTS = ["A red ball rolls to the left.", "  the wet street at night 🎬\n"]


@pytest.mark.slow
@pytest.mark.parametrize("style", ["2.0", "2.3"])
def test_prompts_become_what_the_pipeline_attends_to(style: str, tmp_path: Path) -> None:
    """Tokenizer, text encoder and connectors, as the runtime runs them, and LTX2Pipeline's own."""
    source = make_text_source(tmp_path / "source", style=style)
    save_tokenizer_json(source.tokenizer, tmp_path / "tokenizer.json", GEMMA)
    sessions = {
        spec.component: export_session(source, tmp_path, spec) for spec in (gemma.spec(source), connectors.spec(source))
    }

    def session(name: str) -> Any:
        outputs = [each.name for each in sessions[name].get_outputs()]
        return SimpleNamespace(run=lambda feeds: dict(zip(outputs, sessions[name].run(None, feeds), strict=True)))

    models: Any = SimpleNamespace(tokenizer=Tokenizer.load(tmp_path / "tokenizer.json"), session=session)
    features = sum(gemma.feature_widths(gemma.connectors_config(source)))
    host: Any = SimpleNamespace(text_channels=features, connectors=runtime_side(source))
    given = {"prompt": PROMPTS, "negative_prompt": "blurry", "max_sequence_length": 2 * REGISTERS}
    request = LTX2Request.resolve(given, {}, DEFAULTS)
    ours = texts(models, request, host, ("negative", "positive"))

    oracle = TorchText(source)
    pipe = LTX2Pipeline(
        scheduler=None, vae=None, audio_vae=None, text_encoder=oracle.gemma, connectors=oracle.connectors,
        tokenizer=load_tokenizer(source.tokenizer, GEMMA), transformer=None, vocoder=None,
    )  # fmt: skip
    with torch.no_grad():
        embeds, mask, negative_embeds, negative_mask = pipe.encode_prompt(
            PROMPTS, "blurry", max_sequence_length=2 * REGISTERS
        )
        expected = {
            "positive": oracle.connectors(embeds, mask, padding_side="left"),
            "negative": oracle.connectors(negative_embeds, negative_mask, padding_side="left"),
        }
    for side in ("positive", "negative"):
        for got, values in zip(ours[side], expected[side], strict=False):
            np.testing.assert_allclose(got, values.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("double", [True, False])
def test_the_host_is_told_torchs_frequencies(double: bool) -> None:
    config = CONNECTORS | CONNECTOR_STYLES["2.3"] | {"rope_double_precision": double}
    module = tiny_connectors(style="2.3", seed=0, rope_double_precision=double)
    told = connectors.host(dict(module.config))
    assert (told["registers"], told["base_length"]) == (REGISTERS, 4096)
    for side, name in (("video", "frequencies"), ("audio", "audio_frequencies")):
        frequencies = torch.tensor(told[name])
        assert len(frequencies) == connectors.width(config, side) // 2
        rope = getattr(module, f"{side}_connector").rope
        cos, sin = (table.transpose(1, 2).flatten(2)[0] for table in rope(1, 5, torch.device("cpu")))
        angles = (torch.arange(5, dtype=torch.float32) / 4096 * 2 - 1)[:, None] * frequencies
        assert torch.equal(cos, angles.cos())
        assert torch.equal(sin, angles.sin())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_connector_num_attention_heads": 2}, "a connector of 32 channels for the video; expected 48"),
        ({"audio_connector_num_learnable_registers": 8}, "16 learnable registers for the video and 8 for the sound"),
        ({"audio_connector_num_learnable_registers": None}, "and None for the sound"),
        ({"rope_type": "other"}, "rope_type other; expected split or interleaved"),
        (
            {"audio_connector_num_attention_heads": 16, "audio_connector_attention_head_dim": 3},
            "heads of 3 channels for the audio; expected an even number",
        ),
    ],
    ids=["width", "registers", "one side", "rope", "odd heads"],
)
def test_what_no_graph_covers_is_refused(change: dict[str, Any], message: str) -> None:
    config = dict(tiny_connectors(style="2.0", seed=0).config) | change
    with pytest.raises(SourceError, match=message):
        connectors.check(Path("connectors"), config)
