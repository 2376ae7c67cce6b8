"""The text encoder's graph against transformers' Gemma-3 and the features that diffusers' connectors make of it.

Tolerance: float32 sums in another order, over features of a standard deviation near 1; a wrong mask or place is off by
more than 0.1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from doubles.ltx2_text import TorchText, export_session, left_padded, make_text_source
from make_tiny_ltx2 import CONNECTORS
from safetensors.torch import load_file, save_file
from tiny_gemma import TEXT
from transformers import Gemma3ForConditionalGeneration, Gemma3TextConfig

from telecine.errors import SourceError
from telecine.families.ltx2.gemma import gemma_names
from telecine_export.families.ltx2 import gemma
from telecine_export.source import Source, open_source

TOLERANCE = 1e-5
VOCABULARY = 560
# (length, tokens of each prompt): traced at 2 x 12, a window of 12 tokens. One token alone, none padded, one prompt.
TEXTS = ((16, (9,)), (48, (1, 48, 23)), (32, (12, 30)))
# Away from what the tiny model has: a window alone, biases, one head for keys, frequencies of another kind.
OTHER: dict[str, Any] = {
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention"],
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "sliding_window": 5,
    "attention_bias": True,
    "rms_norm_eps": 1e-3,
    "hidden_activation": "silu",
    "rope_parameters": {
        "sliding_attention": {
            "rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def text_source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    made: dict[str, Source] = {}

    def get(style: str) -> Source:
        if style not in made:
            folder = tmp_path_factory.mktemp("source")
            if style == "other":
                made[style] = make_text_source(folder, style="2.0", gemma=OTHER, text_proj_in_factor=4, proj_bias=True)
            else:
                made[style] = make_text_source(folder, style=style)
        return made[style]

    return get


@pytest.mark.parametrize("style", ["2.0", "2.3", pytest.param("other", marks=pytest.mark.slow)])
def test_features_are_those_of_all_hidden_states(
    text_source: Callable[[str], Source], style: str, tmp_path: Path
) -> None:
    source = text_source(style)
    spec = gemma.spec(source)
    session = export_session(source, tmp_path, spec)
    oracle = TorchText(source)
    random = np.random.default_rng(0)
    for length, tokens in TEXTS:
        ids, mask = left_padded(random, VOCABULARY, length, tokens)
        (got,) = session.run(["prompt_embeds"], {"input_ids": ids, "attention_mask": mask})
        expected, _ = oracle.connect(oracle.hidden_states(ids, mask), mask)
        assert expected.shape[2] == spec.output_shape[2]
        assert expected[mask > 0].std() > 0.3
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)
    _check_weights(source, tmp_path / "text_encoder" / "main.onnx")


def _check_weights(source: Source, graph: Path) -> None:
    """The language model and the projections, under the names that a source gives them; no image tower, no head."""
    model = onnx.load(str(graph), load_external_data=False)
    names = {each.name for each in model.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL}
    with source.checkpoint("text_encoder") as text, source.checkpoint("connectors") as connectors:
        assert names == set(text.names()) | {name for name in connectors.names() if "text_proj_in" in name}


# Layouts


LAYOUTS = {
    "transformers 4": "language_model.model.",
    "transformers 5": "model.language_model.",
    "a language model": "model.",
    "its inner model": "",
}


@pytest.mark.parametrize("prefix", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_same_tensors(text_source: Callable[[str], Source], prefix: str, tmp_path: Path) -> None:
    source = text_source("2.0")
    stored = load_file(source.root / "text_encoder" / "model.safetensors")
    with source.checkpoint("text_encoder") as checkpoint:
        expected = {name: checkpoint.load(name) for name in checkpoint.names()}
    files = {prefix + name.removeprefix("model.language_model."): tensor for name, tensor in expected.items()}
    others = {name: tensor for name, tensor in stored.items() if "language_model" not in name}
    assert others  # of the image tower
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    save_file(files | others | {"lm_head.weight": torch.zeros(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    with Source(root=tmp_path, pipeline_class="LTX2Pipeline").checkpoint("text_encoder") as checkpoint:
        assert set(checkpoint.names()) == set(expected)
        assert all(torch.equal(checkpoint.load(name), tensor) for name, tensor in expected.items())


def test_shards_are_read_together(text_source: Callable[[str], Source], tmp_path: Path) -> None:
    source = text_source("2.0")
    model: Any = Gemma3ForConditionalGeneration
    whole = model.from_pretrained(source.root / "text_encoder")
    whole.save_pretrained(tmp_path / "text_encoder", max_shard_size="100KB")
    assert len(list((tmp_path / "text_encoder").glob("*.safetensors"))) > 2
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "LTX2Pipeline"}))
    (tmp_path / "connectors").symlink_to(source.root / "connectors")
    sharded = open_source(str(tmp_path))
    with sharded.checkpoint("text_encoder", "connectors") as got, source.checkpoint("text_encoder") as expected:
        assert set(got.names()) > set(expected.names())
        for name in expected.names():
            assert got.shape(name) == expected.shape(name)
            assert torch.equal(got.load(name), expected.load(name))
        assert got.shape("text_proj_in.weight") == (TEXT["hidden_size"], 3 * TEXT["hidden_size"])
        with pytest.raises(SourceError, match=r"text_encoder and .*connectors has no tensor nothing"):
            got.load("nothing")


def test_other_text_encoders_have_names_of_their_own() -> None:
    assert gemma_names(["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"]) == {}


# What no graph covers


def _config(**changes: Any) -> Any:
    kind: Any = Gemma3TextConfig
    return kind(**TEXT | changes)


ROPE = TEXT["rope_parameters"]


@pytest.mark.parametrize(
    ("text", "connectors", "message"),
    [
        ({}, {"caption_channels": 64}, "hidden_size 48; expected 64, the connectors' caption_channels"),
        ({"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}, {}, "5 hidden states; expected 3"),
        ({"use_bidirectional_attention": True}, {}, "use_bidirectional_attention"),
        (
            {"rope_parameters": ROPE | {"full_attention": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}}},
            {},
            "rope_type dynamic; expected one of default",
        ),
    ],
    ids=["width", "layers", "bidirectional", "rope"],
)
def test_what_no_graph_covers_is_refused(text: dict[str, Any], connectors: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        gemma.check(Path("text_encoder"), _config(**text), CONNECTORS | connectors)


def test_another_text_encoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text('{"model_type": "gemma4_unified"}')
    with pytest.raises(SourceError, match="model_type gemma4_unified; expected gemma3"):
        gemma.text_config(Source(root=tmp_path, pipeline_class="LTX2Pipeline"))
